"""Features in two dimensions, and the numbers beside them."""

import numpy as np
import pytest
import sklearn.manifold
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


@pytest.mark.parametrize(("samples", "neighbours", "perplexity"), [(4, 3, 1), (94, 10, 30)])
def test_what_tsne_is_given(samples, neighbours, perplexity, monkeypatch):
    given = []

    class Stub:
        def __init__(self, **options):
            given.append(options)

        def fit_transform(self, x):
            given.append(x)
            return x[:, :2]

    monkeypatch.setattr(sklearn.manifold, "TSNE", Stub)
    features = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    flat, numbers = embed(features, torch.zeros(samples, dtype=torch.int64))
    options, x = given
    assert options == {"init": "pca", "perplexity": perplexity, "random_state": 123}
    assert x.dtype == flat.dtype == np.float32
    assert (numbers["neighbours"], numbers["perplexity"]) == (neighbours, perplexity)
    assert (numbers["knn_accuracy"], numbers["silhouette"]) == (100, None)
    assert (numbers["seed"], numbers["scikit-learn"]) == (123, sklearn.__version__)


def test_a_class_of_the_commonest_of_ten_neighbours():
    """On a line: ten of class 0 close by, one of class 1 among them, six of class 1 far off."""
    places = torch.tensor([*range(10), 4.5, *range(100, 106)])[:, None].repeat(1, 2)
    labels = torch.tensor([0] * 10 + [1] * 7)
    _, numbers = embed(places, labels)
    # the six have 5 of their own and 5 of the others: a tie, which the lower class takes
    assert numbers["knn_accuracy"] == pytest.approx(100 * 10 / 17)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        ((3, 4), (2,)),
        ((3,), (3,)),
        ((1, 4), (1,)),
        ((3, 4, 1), (3,)),
        ((3, 4), (3, 1)),
        ((3, 1), (3,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(features, labels):
    with pytest.raises(ValueError, match=r"features must be \(N, D\) with N and D >= 2"):
        embed(torch.zeros(features), torch.zeros(labels))


@pytest.mark.parametrize(("samples", "classes"), [(2, 1), (2, 2), (3, 3), (4, 2)])
def test_few_samples(samples, classes):
    features = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    flat, numbers = embed(features, torch.arange(samples) % classes)
    assert np.isfinite(flat).all()
    assert (numbers["silhouette"] is not None) == (1 < classes < samples)
