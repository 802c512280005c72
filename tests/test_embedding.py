"""Features in two dimensions, and the numbers beside them."""

import numpy as np
import pytest
import torch

from lnlsr_lib.embedding import embed


def test_classes_far_apart_are_told_apart_and_shuffled_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    features = torch.randn(60, 5, generator=generator) + 50 * labels[:, None]
    flat, numbers = embed(features, labels)
    assert flat.shape == (60, 2)
    assert numbers["knn_accuracy"] == 100
    assert numbers["silhouette"] > 0.9
    again, _ = embed(features, labels)
    assert np.array_equal(flat, again)
    shuffled = labels[torch.randperm(60, generator=generator)]
    _, worse = embed(features, shuffled)
    assert worse["knn_accuracy"] < 60
    assert worse["silhouette"] < 0.1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="features must be"):
        embed(torch.zeros(3, 4), torch.zeros(2))
