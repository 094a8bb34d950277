"""What is fitted on the validation split after training: the softmax' temperature and the decision threshold.

NumPy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from model.errors import InputError

TEMPERATURES = (0.05, 20.0)
"""The least and the highest temperature that is fitted."""

BISECTIONS = 60
"""Halvings of the logarithm of :data:`TEMPERATURES`' range: more than float64 can tell apart."""

THRESHOLD_METRICS = ("f1", "recall", "precision")


@dataclasses.dataclass(frozen=True)
class ThresholdTarget:
    """What a decision threshold is chosen for; ``str`` gives the text that :func:`parse_threshold_target` reads.

    Attributes:
        metric: ``f1``, ``recall`` or ``precision``, of the positive class.
        least: what recall or precision must reach, in (0, 1]; None for ``f1``, which is made as high as it gets.

    Raises:
        InputError: the metric is another one, or ``least`` is out of range, missing or superfluous.
    """

    metric: str
    least: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in THRESHOLD_METRICS:
            raise InputError(f"a threshold is chosen for {', '.join(THRESHOLD_METRICS)}, not for {self.metric!r}")
        if (self.least is None) != (self.metric == "f1"):
            wanted = (
                "f1 takes no number" if self.metric == "f1" else f"{self.metric} needs a number: {self.metric}=0.99"
            )
            raise InputError(f"as the target of a threshold, {wanted}")
        if self.least is not None and not 0.0 < self.least <= 1.0:
            raise InputError(f"{self.metric}={self.least!r}: {self.metric} must be above 0 and no more than 1")

    def __str__(self) -> str:
        if self.least is None:
            return self.metric
        return f"{self.metric}={np.format_float_positional(float(self.least), trim='-')}"


def parse_threshold_target(text: str) -> ThresholdTarget:
    """Read ``f1``, ``recall=R`` or ``precision=P`` with R and P in (0, 1].

    Raises:
        InputError: the text is none of these.
    """
    metric, equals, number = (part.strip() for part in text.partition("="))
    if metric not in THRESHOLD_METRICS:
        raise InputError(f"the target of a threshold is f1, recall=0.99 or precision=0.99, not {text!r}")
    try:
        return ThresholdTarget(metric, float(number) if equals else None)
    except ValueError:
        raise InputError(f"{text!r}: {number!r} is no number; write {metric}=0.99 for example") from None


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The temperature T by which logits are divided so that softmax(logits / T) is calibrated (Guo et al. 2017).

    T minimises the cross-entropy, which is convex in 1 / T, so that its derivative has one root. Where every image is
    classified rightly there is none: the cross-entropy falls without end as T goes to 0, which says nothing of how sure
    the network may be of other images, and T is 1.

    Args:
        logits: float32[images, classes], finite, each image's up to a constant of its own: logarithms of probabilities
            will do, where none of them is 0.
        labels: int64[images], index of the class.

    Returns:
        T, in :data:`TEMPERATURES`: above 1 for a network that is too sure. The upper end where the logits tell less
        than nothing; 1 where every image is classified rightly, or where the logits are the same for all classes.

    Raises:
        ValueError: the shapes do not match, there is no image or one class, a label is out of range, or a logit is no
            finite number.
    """
    images, classes = _checked_shape(logits)
    if labels.shape != (images,) or images == 0:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: no match, or no image")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must be in [0, {classes})")
    centred = logits.astype(np.float64)
    if not np.isfinite(centred).all():
        raise ValueError("logits must be finite numbers")
    centred -= centred.max(axis=1, keepdims=True)
    of_label = centred[np.arange(images), labels]
    if not of_label.any():
        return 1.0
    wanted = float(of_label.sum())

    low, high = np.log(TEMPERATURES)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        # The cross-entropy's derivative with respect to 1 / T: too sure where the expected logit is above the wanted.
        if float((_softmax(centred / np.exp(middle)) * centred).sum()) > wanted:
            low = middle
        else:
            high = middle
    return float(np.clip(np.exp((low + high) / 2), *TEMPERATURES))


def apply_temperature(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Probabilities softmax(logits / temperature).

    The order of an image's classes stays that of its logits, though neighbours may become equal by rounding.

    Args:
        logits: float32[images, classes], of any finite size.
        temperature: above 0.

    Returns:
        float32[images, classes], in [0, 1]; each row sums to 1.

    Raises:
        ValueError: the temperature is not a positive number, or ``logits`` has another shape.
    """
    _checked_shape(logits)
    if not 0.0 < temperature < np.inf:
        raise ValueError(f"a temperature is a positive number, not {temperature}")
    centred = logits.astype(np.float64)
    centred -= centred.max(axis=1, keepdims=True)
    return _softmax(centred / temperature).astype(np.float32)


def choose_threshold(
    probabilities_of_positive: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_], target: ThresholdTarget
) -> float:
    """The decision threshold t that serves a target best: an image is called positive where its probability is >= t.

    - ``f1``: of all thresholds whose F1 is as high as any but for chance, the nearest to 0.5. By chance the errors of
      the best one may be more by their standard error, the root of their number, and by one at least (the
      one-standard-error rule of Breiman et al. 1984, section 3.4.3): a network with few errors would otherwise
      let one odd image of the validation split move the threshold far, and be worse on new images for it.
    - ``recall=R``: the highest threshold with a recall of R or more, which has the fewest false alarms of them.
    - ``precision=P``: the lowest threshold with a precision of P or more, which has the highest recall of them.

    All thresholds between two neighbouring probabilities call the same images positive. Of those, t is 0.5 where ``f1``
    allows it, else the middle: a threshold that equals an image's own probability would lose that image to the last bit
    of another engine, and new images fall on either side of it.

    Args:
        probabilities_of_positive: float32[images], in [0, 1].
        is_positive: bool[images], whether the label is the positive class.
        target: what to choose for.

    Returns:
        t in [0, 1], a number that float32 holds exactly, as :func:`model.engine.decide` compares in it. For ``f1`` 0.5
        where no image is positive or all are, as nothing is to be weighed then.

    Raises:
        InputError: no threshold reaches the precision, or no image is positive and recall is asked for.
        ValueError: the shapes do not match, there is no image, or a probability is not in [0, 1].
    """
    shape = probabilities_of_positive.shape
    if len(shape) != 1 or is_positive.shape != shape or shape[0] == 0:
        raise ValueError(f"probabilities {shape} and labels {is_positive.shape}: no match, or no image")
    scores = probabilities_of_positive.astype(np.float32)
    if not ((scores >= 0.0) & (scores <= 1.0)).all():
        raise ValueError("probabilities must be in [0, 1]")
    positive = is_positive.astype(np.bool_)
    positives = int(np.count_nonzero(positive))

    # Entry i speaks of the thresholds in (lower[i], upper[i]], which call all images positive from upper[i] on.
    upper, position = np.unique(scores, return_inverse=True)
    lower = np.concatenate([np.zeros(1, np.float32), upper[:-1]])
    called = np.bincount(position)[::-1].cumsum()[::-1]
    found = np.bincount(position[positive], minlength=len(upper))[::-1].cumsum()[::-1]

    least = target.least
    if least is None:
        if positives in (0, len(scores)):
            return 0.5
        f1 = 2 * found / (called + positives)
        best = int(f1.argmax())
        errors = called[best] + positives - 2 * found[best]
        bound = 2 * found[best] / (called[best] + positives + max(1.0, float(np.sqrt(errors))))
        good = np.flatnonzero(f1 >= bound)
        distance = np.maximum(np.maximum(lower[good] - 0.5, 0.5 - upper[good]), 0.0)
        chosen = int(good[distance.argmin()])
        if lower[chosen] < 0.5 <= upper[chosen]:
            return 0.5
    elif target.metric == "recall":
        if not positives:
            raise InputError(f"{target}: no image is of the positive class, so that there is no recall")
        chosen = int(np.flatnonzero(found / positives >= least)[-1])
    else:
        precision = found / called
        reached = np.flatnonzero(precision >= least)
        if not len(reached):
            raise InputError(
                f"{target}: no threshold has that precision; the highest that one has is {_rounded_down(precision)}"
            )
        chosen = int(reached[0])
    return _middle(lower[chosen], upper[chosen])


def _middle(lower: np.float32, upper: np.float32) -> float:
    """The middle of (lower, upper] in float32, which may have no number between the two."""
    middle = np.float32((float(lower) + float(upper)) / 2)
    return float(middle if middle > lower else upper)


def _rounded_down(precision: npt.NDArray[np.float64]) -> str:
    # Rounded up, it would name a precision that is refused as well.
    return f"{np.floor(float(precision.max()) * 1e4) / 1e4:.4f}"


def _softmax(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Softmax of rows whose largest entry is 0."""
    exponentials: npt.NDArray[np.float64] = np.exp(centred)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _checked_shape(logits: npt.NDArray[np.float32]) -> tuple[int, int]:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be float32[images, classes] of two classes or more, not {logits.shape}")
    return logits.shape[0], logits.shape[1]
