"""Reference statistics of the training images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.drift import HISTOGRAM_BINS, reference_statistics


def statistics(images: int = 200, features: int = 3):
    rng = np.random.default_rng(0)
    positive = rng.random(images).astype(np.float32)
    probabilities = np.stack([1 - positive, positive], axis=1)
    embedding = rng.normal(2.0, 3.0, (images, features)).astype(np.float32)
    brightness = rng.uniform(0, 255, images).astype(np.float32)
    return reference_statistics(probabilities, embedding, brightness), probabilities, embedding, brightness


def test_histograms_count_every_image_in_its_bin():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8], [0.03, 0.97]], np.float32)
    reference = reference_statistics(
        probabilities, np.zeros((4, 2), np.float32), np.array([0.0, 255.0, 7.9, 8.0], np.float32)
    )
    # Scores are 1.0, 0.5, 0.8 and 0.97: the predicted class', and the last bin holds its upper end.
    assert np.flatnonzero(reference["score_histogram"]).tolist() == [16, 25, 31]
    assert reference["score_histogram"][31] == 2
    assert [reference["brightness_histogram"][index] for index in (0, 1, 31)] == [2, 1, 1]
    assert reference["images"] == 4


def test_no_image_is_lost_and_histograms_have_their_bins():
    reference, *_ = statistics()
    for name in ("score_histogram", "brightness_histogram"):
        assert len(reference[name]) == HISTOGRAM_BINS
        assert sum(reference[name]) == 200


def test_mean_and_covariance_are_those_of_the_embedding():
    reference, _, embedding, _ = statistics()
    centred = embedding.astype(np.float64) - embedding.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(reference["embedding_mean"], embedding.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(reference["embedding_covariance"], centred.T @ centred / 199)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_the_shapes_follow_the_embedding_and_all_is_json(features):
    reference, *_ = statistics(features=features)
    assert np.shape(reference["embedding_mean"]) == (features,)
    assert np.shape(reference["embedding_covariance"]) == (features, features)
    assert json.loads(json.dumps(reference)) == reference
