"""Features of the test set in two dimensions, and numbers for what the eye is asked to judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["embed"]

# Source: the same authors' code for another paper; the paper itself gives none.
SEED = 123
PERPLEXITY = 30.0
NEIGHBOURS = 10  # ours


def embed(features: Tensor, labels: Tensor) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """t-SNE of features, and how well they separate the true classes where they lie.

    Args:
        features: (N, D), floating, finite, N and D >= 2.
        labels: true classes, (N,), int64.

    Returns:
        The embedding (N, 2), and ``knn_accuracy`` (percent of samples whose class is the
        commonest among their ten nearest neighbours, themselves left out), ``silhouette`` (mean
        over the samples, in [-1, 1]; None for a single class, or as many as samples) and what
        t-SNE was given.

    Raises:
        ValueError: shapes that do not fit.
    """
    if features.ndim != 2 or min(features.shape) < 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "features must be (N, D) with N and D >= 2, and labels (N,), "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    import sklearn  # here, since it takes a second to import
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    x, y = features.float().numpy(), labels.numpy()
    k = min(NEIGHBOURS, len(x) - 1)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    with threadpool_limits(torch.get_num_threads()):  # as many as a run records: the same bits
        near = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)  # (N, k)
        silhouette = float(silhouette_score(x, y)) if 1 < len(np.unique(y)) < len(y) else None
        flat = TSNE(init="pca", perplexity=perplexity, random_state=SEED).fit_transform(x)
    votes = np.eye(int(y.max()) + 1)[y[near]].sum(axis=1)  # (N, K)
    numbers = {
        "knn_accuracy": 100 * float((votes.argmax(axis=1) == y).mean()),
        "neighbours": k,
        "silhouette": silhouette,
        "perplexity": perplexity,
        "seed": SEED,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    return np.asarray(flat, np.float32), numbers
