"""The fitted temperature against its definition, the chosen threshold against all thresholds."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from model.calibration import (
    TEMPERATURES,
    ThresholdTarget,
    apply_temperature,
    choose_threshold,
    fit_temperature,
    parse_threshold_target,
)
from model.engine import decide
from model.errors import InputError
from model.spec import ModelSpec


def drawn(images, classes, temperature, seed=0, spread=4.0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(seed)
    logits = (spread * generator.normal(size=(images, classes))).astype(np.float32)
    probabilities = apply_temperature(logits, temperature)
    labels = (generator.random(images)[:, None] > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return logits, labels.astype(np.int64)


def cross_entropy(logits, labels, temperature):
    """In nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    logarithms = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-logarithms[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(classes, temperature):
    logits, labels = drawn(20_000, classes, temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.03)
    assert cross_entropy(logits, labels, fitted) <= cross_entropy(logits, labels, 1.0) + 1e-9
    # The cost of being wrong by 20 % must show, or the bound above says nothing.
    assert cross_entropy(logits, labels, fitted) < cross_entropy(logits, labels, 1.2 * fitted) - 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_temperature_is_the_best_of_a_fine_grid(seed):
    logits, labels = drawn(60, 3, 2.0, seed)
    grid = np.geomspace(*TEMPERATURES, 4001)
    losses = [cross_entropy(logits, labels, each) for each in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


@pytest.mark.parametrize("margin", [0.1, 12.0])
def test_images_all_classified_rightly_tell_nothing_of_the_temperature(margin):
    labels = np.arange(10) % 2
    assert fit_temperature((margin * np.eye(2)[labels]).astype(np.float32), labels) == 1.0


def test_temperature_stays_in_its_range():
    labels = np.array([0, 1] * 50)
    logits = 1e-3 * np.eye(2, dtype=np.float32)[labels]
    logits[0] = logits[1]
    assert fit_temperature(logits, labels) == pytest.approx(TEMPERATURES[0], rel=1e-9)
    assert fit_temperature(logits, 1 - labels) == pytest.approx(TEMPERATURES[1], rel=1e-9)
    assert all(
        TEMPERATURES[0] <= fit_temperature(logits * factor, labels) <= TEMPERATURES[1] for factor in (1e-30, 1.0, 1e30)
    )


def test_temperature_ignores_what_changes_no_probability():
    logits, labels = drawn(500, 4, 1.7)
    shifted = logits + np.arange(500, dtype=np.float32)[:, None] % 7
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-5)
    assert fit_temperature(np.full((9, 3), 2.5, np.float32), np.zeros(9, np.int64)) == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), "no image"),
        (np.zeros((3, 2)), np.zeros(2, np.int64), "no match"),
        (np.zeros((3, 1)), np.zeros(3, np.int64), "two classes"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "in \\[0, 2\\)"),
        (np.zeros((3, 2)), np.array([0, 1, -1]), "in \\[0, 2\\)"),
        (np.array([[0.0, np.inf]]), np.array([0]), "finite"),
    ],
)
def test_unusable_logits_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits.astype(np.float32), labels)


def test_apply_temperature_is_a_stable_softmax():
    logits, _ = drawn(300, 6, 1.0)
    probabilities = apply_temperature(logits, 2.5)
    expected = np.exp(logits.astype(np.float64) / 2.5)
    expected /= expected.sum(axis=1, keepdims=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()
    extreme = np.array([[3e38, -3e38], [1e4, 1e4 - 1]], np.float32)
    np.testing.assert_allclose(apply_temperature(extreme, 0.05), [[1, 0], [1, 2.06115362e-9]], rtol=1e-6)
    assert (logits == drawn(300, 6, 1.0)[0]).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="positive number"):
        apply_temperature(np.zeros((1, 2), np.float32), temperature)


@pytest.mark.parametrize("text", ["f1", "recall=0.99", "precision=0.9999999", "recall=1", "precision=0.00001"])
def test_targets_read_what_they_write(text):
    target = parse_threshold_target(text)
    assert str(target) == text
    assert parse_threshold_target(str(target)) == target
    assert (target.metric, target.least) == (text.split("=")[0], float(text.split("=")[1]) if "=" in text else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f1, recall=0.99 or precision=0.99"),
        ("F2", "not 'F2'"),
        ("accuracy=0.9", "not 'accuracy=0.9'"),
        ("f1=0.9", "f1 takes no number"),
        ("recall", "recall needs a number"),
        ("recall=", "no number"),
        ("recall=99%", "'99%' is no number"),
        ("recall=0", "above 0"),
        ("recall=1.0000001", "recall=1.0000001: recall must be above 0 and no more than 1"),
        ("precision=-0.5", "above 0"),
        ("precision=nan", "above 0"),
        ("precision=0.9=0.8", "no number"),
        ("recall\n=x", "no number"),
    ],
)
def test_other_targets_are_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_threshold_target(text)
    assert "\n" not in str(caught.value)


def test_a_target_of_another_metric_is_refused():
    with pytest.raises(InputError, match="not for 'accuracy'"):
        ThresholdTarget("accuracy", 0.9)


def scored(kind, seed, images=40):
    """Probabilities of the positive class, and labels that agree with them more often than chance."""
    generator = np.random.default_rng(seed)
    positive = generator.random(images) < 0.4
    logits = generator.normal(size=images) + np.where(positive, 1.0, -1.0)
    scores = 1 / (1 + np.exp(-logits))
    if kind == "tied":
        scores = np.round(scores * 8) / 8
    elif kind == "sure":
        scores = 1 / (1 + np.exp(-40 * logits))
    elif kind == "dense":
        # Neighbouring numbers of float32, with none between them.
        return (np.float32(0.7).view(np.int32) + np.round(4 * logits).astype(np.int32)).view(np.float32), positive
    return scores.astype(np.float32), positive


def f1_but_for_chance(scores, positive, thresholds):
    """The highest F1, with one standard error more errors."""
    best = max(f1_score(positive, scores >= threshold, zero_division=0.0) for threshold in thresholds)
    bounds = []
    for threshold in thresholds:
        called = scores >= threshold
        if f1_score(positive, called, zero_division=0.0) == best:
            errors = (called != positive).sum()
            hits = (called & positive).sum()
            bounds.append(2 * hits / (2 * hits + errors + max(1, errors**0.5)))
    return max(bounds)


def brute_force(scores, positive, target):
    """The images that the best of all thresholds calls positive, by trying one of each interval of float32."""
    edges = np.concatenate([scores, np.nextafter(scores, np.float32(2)), np.float32([0, 0.5, 1])])
    candidates = []
    thresholds = np.unique(edges[edges <= 1])
    bound = f1_but_for_chance(scores, positive, thresholds) if target.metric == "f1" else 0.0
    for threshold in thresholds:
        called = scores >= threshold
        found = int((called & positive).sum())
        if target.metric == "f1":
            key = (f1_score(positive, called, zero_division=0.0) >= bound - 1e-12, -abs(float(threshold) - 0.5))
        elif target.metric == "recall":
            key = (found / positive.sum() >= target.least, float(threshold))
        else:
            key = (called.any() and found / called.sum() >= target.least, -float(threshold))
        candidates.append((key, called))
    return max(candidates, key=lambda candidate: candidate[0])


def decided(scores, threshold):
    spec = ModelSpec(("sound", "crack"), "crack", 32, threshold, "small_cnn", "small", 8, "")
    return decide(np.stack([1 - scores, scores], axis=1), spec) == 1


@pytest.mark.parametrize("kind", ["spread", "tied", "sure", "dense"])
@pytest.mark.parametrize(
    "text", ["f1", "recall=0.25", "recall=0.9", "recall=1", "precision=0.3", "precision=0.7", "precision=1"]
)
def test_threshold_decides_as_the_best_of_all_thresholds(kind, text):
    target = parse_threshold_target(text)
    reachable = 0
    for seed in range(25):
        scores, positive = scored(kind, seed)
        key, expected = brute_force(scores, positive, target)
        if not key[0]:
            with pytest.raises(InputError, match="no threshold has that precision"):
                choose_threshold(scores, positive, target)
            continue
        reachable += 1
        threshold = choose_threshold(scores, positive, target)
        assert 0.0 <= threshold <= 1.0
        assert threshold == float(np.float32(threshold))
        assert (decided(scores, threshold) == expected).all()
    assert reachable >= 5


def threshold_of(scores, positive, text):
    return choose_threshold(np.array(scores, np.float32), np.array(positive, bool), parse_threshold_target(text))


def test_f1_takes_one_half_where_that_is_as_good_as_any():
    assert threshold_of([0.1, 0.2, 0.51, 0.9], [0, 0, 1, 1], "f1") == 0.5
    assert threshold_of([0.1, 0.5, 0.9], [0, 1, 1], "f1") == 0.5


def test_f1_takes_the_plateau_nearest_to_one_half_and_its_middle():
    assert threshold_of([0.125, 0.25, 0.375], [0, 1, 1], "f1") == 0.1875
    assert threshold_of([0.625, 0.625, 0.875, 0.875], [0, 0, 1, 1], "f1") == 0.75


def test_a_single_odd_image_does_not_move_the_threshold_for_f1():
    scores = [0.02] * 100 + [0.84] + [0.97] * 100
    assert threshold_of(scores, [0] * 101 + [1] * 100, "f1") == 0.5
    # Nine such images are more than chance: the threshold goes above them.
    scores = [0.02] * 100 + [0.75] * 9 + [1.0] * 100
    assert threshold_of(scores, [0] * 109 + [1] * 100, "f1") == 0.875


def test_the_threshold_for_f1_may_cost_the_standard_error_of_the_best_ones_errors():
    def costing(errors_of_best, more_at_one_half):
        wrong = [0.96875] * errors_of_best + [0.75] * more_at_one_half
        scores = [0.02] * 100 + wrong + [0.9375] * 100
        return threshold_of(scores, [0] * (100 + len(wrong)) + [1] * 100, "f1")

    assert costing(16, 4) == 0.5
    assert costing(16, 5) == 0.84375


def test_recall_and_precision_take_the_middle_of_the_gap():
    scores, positive = [0.25, 0.5, 0.625, 0.875], [0, 1, 0, 1]
    assert threshold_of(scores, positive, "recall=0.5") == 0.75
    assert threshold_of(scores, positive, "recall=0.51") == 0.375
    assert threshold_of(scores, positive, "precision=1") == 0.75
    assert threshold_of(scores, positive, "precision=0.6") == 0.375
    assert threshold_of(scores, positive, "precision=0.5") == 0.125


def test_a_gap_without_a_number_of_float32():
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    assert threshold_of([low] * 2 + [high] * 2, [0, 0, 1, 1], "f1") == float(high)
    assert threshold_of([0.0, 0.0], [1, 0], "recall=1") == 0.0
    assert threshold_of([1.0, 1.0, 0.0], [1, 0, 0], "recall=1") == 0.5


def test_images_of_one_class():
    assert threshold_of([0.6, 0.9], [0, 0], "f1") == 0.5
    assert threshold_of([0.1, 0.2], [1, 1], "f1") == 0.5
    assert threshold_of([0.25, 0.5], [1, 1], "recall=1") == 0.125
    assert threshold_of([0.25, 0.5], [1, 1], "precision=1") == 0.125
    with pytest.raises(InputError, match="no image is of the positive class"):
        threshold_of([0.1, 0.2], [0, 0], "recall=0.5")
    with pytest.raises(InputError, match=r"the highest that one has is 0\.0000"):
        threshold_of([0.1, 0.2], [0, 0], "precision=0.5")


def test_a_precision_out_of_reach_names_the_best():
    with pytest.raises(InputError, match=r"^precision=0\.9: no threshold .* 0\.6666$"):
        threshold_of([0.9, 0.8, 0.7, 0.1], [0, 1, 1, 0], "precision=0.9")


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([], [], "no image"),
        ([0.5], [True, False], "no match"),
        ([1.5], [True], "in \\[0, 1\\]"),
        ([np.nan], [True], "in \\[0, 1\\]"),
    ],
)
def test_unusable_probabilities_are_refused(scores, positive, message):
    with pytest.raises(ValueError, match=message):
        threshold_of(scores, positive, "f1")
