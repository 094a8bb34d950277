"""Reference statistics: what the training images looked like to the network. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HISTOGRAM_BINS = 32


def reference_statistics(
    probabilities: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32], brightness: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """What ``reference.json`` holds, JSON-ready.

    Args:
        probabilities: float32[images, classes] in [0, 1].
        embedding: float32[images, n].
        brightness: float32[images], in [0, 255].

    Returns:
        ``images``; ``score_histogram``, counts of the predicted class' probability in 32 equal bins of [0, 1];
        ``brightness_histogram``, counts in 32 equal bins of [0, 255]; ``embedding_mean`` [n] and
        ``embedding_covariance`` [n][n].
    """
    scores = probabilities.max(axis=1)
    covariance = np.cov(embedding, rowvar=False, dtype=np.float64).reshape(embedding.shape[1], embedding.shape[1])
    return {
        "images": len(probabilities),
        "score_histogram": np.histogram(scores, HISTOGRAM_BINS, (0.0, 1.0))[0].tolist(),
        "brightness_histogram": np.histogram(brightness, HISTOGRAM_BINS, (0.0, 255.0))[0].tolist(),
        "embedding_mean": embedding.mean(axis=0, dtype=np.float64).tolist(),
        "embedding_covariance": covariance.tolist(),
    }
