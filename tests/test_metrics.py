"""The metrics of model.metrics against scikit-learn's, and the algebra of their counts."""

import itertools
import json
import math
import pickle
from functools import reduce

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from model import metrics
from model.metrics import MetricCounts

# The most that binning the probabilities changes ROC AUC and average precision, on sets of about 1,000 rows.
ROC_AUC_ERROR = 2e-3
AVERAGE_PRECISION_ERROR = 6e-3


def sample(size, rows, seed, sharpness=1.0):
    """Random class names, labels, predictions and probabilities that agree more often than chance."""
    generator = np.random.default_rng(seed)
    classes = tuple(f"class {index}" for index in range(size))
    truth = generator.integers(size, size=rows)
    logits = sharpness * (generator.normal(size=(rows, size)) + 1.2 * np.eye(size)[truth])
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return classes, truth, probabilities.argmax(axis=1), probabilities


def counted(classes, truth, predicted, probabilities):
    return metrics.count(classes, [classes[index] for index in truth], predicted, probabilities)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_table_equals_scikit_learn(size, seed):
    classes, truth, predicted, probabilities = sample(size, 701, seed)
    values = metrics.compute(counted(classes, truth, predicted, probabilities), classes[-1])
    expected = sklearn_metrics.classification_report(
        truth, predicted, labels=range(size), target_names=classes, output_dict=True, zero_division=0
    )
    rows = {**values["per_class"], "macro avg": values["macro_avg"], "weighted avg": values["weighted_avg"]}
    for name, row in rows.items():
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("support",) * 2):
            assert row[ours] == pytest.approx(expected[name][theirs], abs=1e-12), (name, ours)
    assert values["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted), abs=1e-12)
    assert values["mcc"] == pytest.approx(sklearn_metrics.matthews_corrcoef(truth, predicted), abs=1e-12)
    assert values["confusion_matrix"] == sklearn_metrics.confusion_matrix(truth, predicted).tolist()
    assert values["f1"] == values["per_class"][classes[-1]]["f1"]


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_ranking_metrics_equal_scikit_learn_to_the_binning(size, sharpness):
    classes, truth, predicted, probabilities = sample(size, 1200, seed=5, sharpness=sharpness)
    values = metrics.compute(counted(classes, truth, predicted, probabilities), classes[1])
    positive, scores = truth == 1, probabilities[:, 1].astype(np.float64)
    binned = np.searchsorted(metrics.RANK_EDGES, scores, side="right")
    assert values["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(positive, binned), abs=1e-12)
    assert values["average_precision"] == pytest.approx(
        sklearn_metrics.average_precision_score(positive, binned), abs=1e-12
    )
    error = abs(values["roc_auc"] - sklearn_metrics.roc_auc_score(positive, scores))
    assert error <= min(ROC_AUC_ERROR, values["roc_auc_error"] + 1e-12)
    assert values["roc_auc_error"] < 3 * ROC_AUC_ERROR
    exact = sklearn_metrics.average_precision_score(positive, scores)
    assert values["average_precision"] == pytest.approx(exact, abs=AVERAGE_PRECISION_ERROR)


def test_curve_points_equal_scikit_learn():
    classes, truth, predicted, probabilities = sample(3, 900, seed=3)
    points = metrics.curve_points(counted(classes, truth, predicted, probabilities), classes[2])
    binned = np.searchsorted(metrics.RANK_EDGES, probabilities[:, 2].astype(np.float64), side="right")
    false_positive_rate, recall, _ = sklearn_metrics.roc_curve(truth == 2, binned, drop_intermediate=False)
    precision, recall_again, _ = sklearn_metrics.precision_recall_curve(truth == 2, binned)
    np.testing.assert_allclose(points["false_positive_rate"], false_positive_rate[1:], atol=1e-12)
    np.testing.assert_allclose(points["recall"], recall[1:], atol=1e-12)
    np.testing.assert_allclose(points["precision"], precision[-2::-1], atol=1e-12)
    np.testing.assert_allclose(points["recall"], recall_again[-2::-1], atol=1e-12)
    called = probabilities[:, 2].astype(np.float64) >= points["threshold"][10]
    assert (called & (truth == 2)).sum() / (truth == 2).sum() == pytest.approx(points["recall"][10], abs=1e-12)


def test_expected_calibration_error_of_its_definition():
    classes, truth, predicted, probabilities = sample(3, 800, seed=11)
    confidence = probabilities[np.arange(800), predicted].astype(np.float64)
    expected = 0.0
    for bin_number in range(15):
        chosen = (confidence > bin_number / 15) & (confidence <= (bin_number + 1) / 15)
        if chosen.any():
            gap = abs((predicted == truth)[chosen].mean() - confidence[chosen].mean())
            expected += chosen.mean() * gap
    assert expected > 0.01
    values = metrics.compute(counted(classes, truth, predicted, probabilities), classes[0])
    assert values["ece"] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_merged_parts_equal_the_whole_in_any_order(seed):
    classes, truth, predicted, probabilities = sample(3, 500, seed)
    # Numbers whose float64 sum would depend on its order.
    probabilities = probabilities.astype(np.float64) * (1 - 1e-9)
    labels = [*(classes[index] for index in truth[:-30]), *([None] * 20), *(["rust"] * 10)]
    whole = metrics.count(classes, labels, predicted, probabilities)
    generator = np.random.default_rng(seed)
    cuts = [0, *sorted(generator.choice(500, size=5).tolist()), 500]
    parts = [
        metrics.count(classes, labels[a:b], predicted[a:b], probabilities[a:b]) for a, b in itertools.pairwise(cuts)
    ]
    shuffled = [parts[index] for index in generator.permutation(len(parts))]
    folded = reduce(MetricCounts.__add__, shuffled, MetricCounts.zero(classes))
    nested = (shuffled[0] + shuffled[1]) + reduce(lambda right, left: left + right, reversed(shuffled[2:]))
    assert folded.to_json() == whole.to_json() == nested.to_json()
    assert whole.unknown_labels == {"rust": 10}


def test_merging_other_classes_is_refused():
    with pytest.raises(ValueError, match="do not merge"):
        MetricCounts.zero(["a", "b"]).merge(MetricCounts.zero(["b", "a"]))


def test_json_round_trip_is_exact_and_compact():
    classes, truth, predicted, probabilities = sample(2, 1000, seed=2, sharpness=8.0)
    counts = counted(classes, truth, predicted, probabilities)
    text = json.dumps(counts.to_json())
    read = MetricCounts.from_json(json.loads(text))
    assert len(text) < 12_000
    assert read.to_json() == counts.to_json()
    for name in ("rank_histogram", "score_histogram", "confusion", "calibration_confidence"):
        np.testing.assert_array_equal(getattr(read, name), getattr(counts, name), strict=True)


def test_damaged_json_is_refused():
    values = MetricCounts.zero(["a", "b"]).to_json()
    with pytest.raises(ValueError, match="shape"):
        MetricCounts.from_json({**values, "confusion": [[1]]})
    with pytest.raises(IndexError):
        MetricCounts.from_json({**values, "score_histogram": {"bins": [100], "counts": [1]}})


def test_unknown_labels_are_counted_apart():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], np.float32)
    counts = metrics.count(["a", "b"], ["a", "spalling", "b", None], probabilities.argmax(axis=1), probabilities)
    values = metrics.compute(counts, "b")
    assert (values["rows"], values["labelled"], values["unknown"], values["unlabelled"]) == (4, 2, 1, 1)
    assert values["unknown_labels"] == {"spalling": 1}
    assert values["confusion_matrix"] == [[1, 0], [0, 1]]
    assert values["predicted"] == {"a": 1, "b": 3}
    assert counts.score_histogram.sum() == 4
    assert counts.rank_histogram[0].sum() == counts.calibration_count.sum() == 2


def test_unlabelled_rows_give_no_made_up_number():
    classes, _, predicted, probabilities = sample(3, 50, seed=0)
    counts = metrics.count(classes, [None] * 50, predicted, probabilities)
    values = metrics.compute(counts, classes[0])
    known = {"rows", "labelled", "unlabelled", "unknown", "unknown_labels", "positive_class", "predicted"}
    assert {name for name, value in values.items() if value is not None} == known
    labelled = metrics.compute(counted(classes, np.zeros(50, int), predicted, probabilities), classes[0])
    assert values.keys() == labelled.keys()
    assert metrics.curve_points(counts, classes[0])["recall"] == []


def test_one_sided_labels_have_no_ranking_metrics():
    classes, _, predicted, probabilities = sample(2, 40, seed=0)
    values = metrics.compute(counted(classes, np.ones(40, int), predicted, probabilities), classes[1])
    assert values["roc_auc"] is values["average_precision"] is values["mcc"] is None
    assert values["per_class"][classes[0]] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_wilson_interval_of_the_literature():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(29, 29)[1] == 1.0


def test_counting_nothing_and_the_ends_of_the_bins():
    empty = metrics.count(["a", "b"], [], np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    assert empty.to_json() == MetricCounts.zero(["a", "b"]).to_json()
    counts = metrics.count(["a", "b"], ["a", "a"], np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    assert (counts.score_histogram[0], counts.score_histogram[-1]) == (1, 1)
    assert (counts.calibration_count[0], counts.calibration_count[-1]) == (1, 1)
    assert (counts.rank_histogram[0, 1, -1], counts.rank_histogram[1, 0, 0]) == (2, 2)


@pytest.mark.parametrize(
    ("predicted", "first", "message"),
    [([0], 0.5, "no match"), ([0, 2], 0.5, "must be in"), ([0, -1], 0.5, "must be in"), ([0, 1], math.nan, "finite")],
)
def test_inputs_that_do_not_fit_are_refused(predicted, first, message):
    with pytest.raises(ValueError, match=message):
        metrics.count(["a", "b"], ["a", "b"], np.array(predicted), np.array([[first, 0.5], [0.5, 0.5]], np.float32))


def test_an_unknown_positive_class_is_refused():
    with pytest.raises(ValueError, match="none of"):
        metrics.compute(MetricCounts.zero(["a", "b"]), "c")


def test_counts_travel_between_processes_without_their_empty_bins():
    counts = counted(*sample(3, 50, 0))
    sent = pickle.dumps(counts)
    assert len(sent) < 5_000 < counts.rank_histogram.nbytes
    assert pickle.loads(sent).to_json() == counts.to_json()
