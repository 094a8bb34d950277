"""Frozen descriptions of a model and of a training, free of TensorFlow and of Beam."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.errors import InputError

STRATEGIES = ("default", "mirrored", "multiworker")
POSITIVE_NAMES = ("positive", "crack", "cracked", "cracks", "defect")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What whoever opens a model bundle must know of its network; stored in ``model.json``.

    Attributes:
        classes: class names in the order of the probabilities' columns, two or more.
        positive_class: the class that precision, recall and the decision threshold speak of.
        image_size: side of the square input in pixels.
        threshold: with two classes, the least probability in [0, 1] of the positive class that decides for it.
        backbone: name of the network.
        recipe: name of the training recipe.
        embedding_size: length of the embedding, 64 or less.
        data_fingerprint: fingerprint of the prepared data it was trained on.
        fingerprint: SHA-256 (hexadecimal) over the model's files; "" until the bundle is written.
    """

    classes: tuple[str, ...]
    positive_class: str
    image_size: int
    threshold: float
    backbone: str
    recipe: str
    embedding_size: int
    data_fingerprint: str
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise InputError(f"a model needs two or more distinct classes, not {list(self.classes)}")
        if self.positive_class not in self.classes:
            raise InputError(f"positive class {self.positive_class!r} is none of {list(self.classes)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold {self.threshold} is not in [0, 1]")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read the fields of a spec from a mapping; other keys are ignored.

        Raises:
            KeyError: a field is missing.
        """
        fields = {
            field.name: values[field.name]
            for field in dataclasses.fields(cls)
            if field.name in values or field.default is dataclasses.MISSING
        }
        return cls(**{**fields, "classes": tuple(fields["classes"])})


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a training with one optimizer.

    Attributes:
        name: what logs and curves call it.
        epochs: the most passes over the training split.
        learning_rate: of Adam, for one replica; multiplied by the number of replicas.
        frozen: the backbone keeps its weights and only the head is trained.
        fine_tune_from: where the backbone is trained, the index of its first trained layer; those below keep theirs.
        augmentation: a name of :data:`model.augmentation.AUGMENTATIONS`, or None.
        cosine: the learning rate falls to zero along half a cosine, else it stays.
        patience: stop after that many epochs without a lower validation loss, and go back to the weights of the
            lowest; None trains all epochs and keeps the last weights.
        averaging: decay in [0, 1) of the moving average of the weights, which is what is validated and kept; None for
            none.
    """

    name: str
    epochs: int
    learning_rate: float
    frozen: bool
    fine_tune_from: int = 0
    augmentation: str | None = None
    cosine: bool = False
    patience: int | None = None
    averaging: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; a recipe is one of these by name.

    Attributes:
        recipe: name of the recipe.
        backbone: ``small_cnn`` or a name of keras.applications.
        image_size: side of the square input in pixels.
        split: the parts of training, validation and test that the recipe was made for, of any sum.
        split_seed: the seed of that split.
        batch_size: images per step and replica.
        stages: what is trained, one after the other.
        dropout: share of the pooled features dropped while training, in [0, 1).
        label_smoothing: share of the target probability that is spread over all classes, in [0, 1).
        seed: of the weights and of the order of the images.
    """

    recipe: str
    backbone: str
    image_size: int
    split: tuple[float, float, float]
    batch_size: int
    stages: tuple[Stage, ...]
    dropout: float = 0.0
    label_smoothing: float = 0.0
    split_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.stages or any(stage.epochs < 1 for stage in self.stages):
            raise InputError("--epochs and --batch-size must be 1 or more")

    @property
    def from_scratch(self) -> bool:
        """Whether the first stage trains the backbone, so that it needs no weights to begin with."""
        return not self.stages[0].frozen

    def with_overrides(self, epochs: int | None = None, **values: Any) -> TrainConfig:
        """The same training with other values; those that are None stay as they are.

        Args:
            epochs: of every stage.
            values: other fields.
        """
        if epochs is not None:
            values["stages"] = tuple(dataclasses.replace(stage, epochs=epochs) for stage in self.stages)
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})


def choose_positive_class(classes: Sequence[str], wanted: str | None = None) -> str:
    """The class that precision and recall speak of: the one asked for, else one named like a defect, else the last.

    Raises:
        InputError: the class asked for is none of the classes.
    """
    if wanted is not None:
        if wanted not in classes:
            raise InputError(f"--positive-class {wanted!r} is none of the classes: {', '.join(classes)}")
        return wanted
    by_name = {name.lower(): name for name in classes}
    return next((by_name[name] for name in POSITIVE_NAMES if name in by_name), classes[-1])


def canonical_json(value: Any) -> str:
    """One JSON text per value: keys sorted, no spaces; what fingerprints are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (hexadecimal) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
