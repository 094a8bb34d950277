"""Pictures of a training: images, augmented views, predictions, curves, and the network itself.

The figures are matplotlib's, made without pyplot: nothing is shown or kept, and ``figure.savefig(path)`` writes one.
Class names come from folder names and may hold anything, so that they are made printable here.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.evaluation import printable_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

RIGHT, WRONG = "#1a7f37", "#cf222e"
TRAINING, VALIDATION = "#1f77b4", "#d9730d"
MUTED = "#666666"
FIRST_POINT: Mapping[str, Any] = {
    "color": VALIDATION,
    "linestyle": "none",
    "marker": "D",
    "markersize": 6,
    "markerfacecolor": "white",
}
TITLE_SIZE = 7.5
SAMPLED_CLASSES = 10
EXPANDED_LAYERS = 40
SUMMARY_WIDTH = 118
LETTERS_ACROSS = 100
"""Letters of a stage's name that have room beside each other above the curves."""
IMAGES_AREA = 54.0
"""Square inches that the images of a figure share, if they are not to get too small: it bounds the size of the file."""


def image_grid(
    images: npt.NDArray[np.uint8],
    titles: Sequence[str],
    columns: int,
    correct: Sequence[bool] | None = None,
    heading: str = "",
) -> Figure:
    """Images in rows, each with a title above.

    Args:
        images: uint8[images, size, size, 3], one or more.
        titles: a text per image, of one line or more; smaller where it is wider than the image.
        columns: images per row, 1 or more.
        correct: per image, whether its title is green or red, and its frame red; None leaves both black.
        heading: above all.

    Raises:
        ValueError: there is no image, or the numbers of images, titles and ``correct`` differ.
    """
    count = len(images)
    if count == 0 or len(titles) != count or (correct is not None and len(correct) != count):
        raise ValueError(f"{count} images, {len(titles)} titles: as many are needed, and one or more")
    columns = min(columns, count)
    side = _side(count, least=1.0, most=1.9)
    lines = max(title.count("\n") + 1 for title in titles)
    cell = side, side + 0.06 + 0.135 * lines
    figure, grid = _grid(-(-count // columns), columns, cell, heading)
    for index, axes in enumerate(grid.flat):
        if index >= count:
            axes.axis("off")
            continue
        _show(axes, images[index])
        colour = "black"
        if correct is not None:
            colour = RIGHT if correct[index] else WRONG
            if not correct[index]:
                _frame(axes, WRONG)
        title = _drawable(titles[index])
        axes.set_title(title, fontsize=_fitting_size(title, side), color=colour, pad=3, parse_math=False)
    return figure


def sample_grid(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    per_class: int = 8,
    seed: int = 0,
    counts: Sequence[int] | None = None,
) -> Figure:
    """A row of random images per class, with the class' name and number of images; the first 10 classes.

    Args:
        pixels: uint8[images, size, size, 3]; only the images shown are read.
        labels: int64[images], index of the class.
        classes: class names.
        per_class: images per class, 1 or more; fewer where the class has fewer.
        seed: another one gives other images.
        counts: images of each class, where ``pixels`` are not all of them.
    """
    shown = classes[:SAMPLED_CLASSES]
    members = [np.flatnonzero(labels == index) for index in range(len(shown))]
    numbers = (counts or [len(of_class) for of_class in members])[: len(shown)]
    names = [
        f"{_wrapped(name)}\n{number:,} image{'' if number == 1 else 's'}"
        for name, number in zip(shown, numbers, strict=True)
    ]
    left = 0.15 + 0.078 * max(len(line) for name in names for line in name.splitlines())
    generator = np.random.default_rng(seed)
    side = _side(len(shown) * per_class, least=0.8, most=1.4)
    heading = f"Random images of the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else ""
    figure, grid = _grid(len(shown), per_class, (side, side), heading, left=left)
    for row, (name, of_class) in enumerate(zip(names, members, strict=True)):
        chosen = generator.choice(of_class, min(per_class, len(of_class)), replace=False)
        for axes, index in itertools.zip_longest(grid[row], chosen.tolist()):
            if index is None:
                _blank(axes)
            else:
                _show(axes, pixels[index])
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=6, parse_math=False)
    return figure


def augmented_grid(originals: npt.NDArray[np.uint8], augmented: npt.NDArray[np.uint8]) -> Figure:
    """A row per image: the original, and at a distance what augmentation makes of it.

    Args:
        originals: uint8[images, size, size, 3], one or more.
        augmented: uint8[images, views, size, size, 3], one view or more.

    Raises:
        ValueError: there is no image or view, or the numbers of images differ.
    """
    images, views = len(originals), augmented.shape[1]
    if len(augmented) != images or images == 0 or views == 0:
        raise ValueError(f"{images} originals and views {augmented.shape}: no match, or none")
    side = _side(images * (views + 1), least=0.8, most=1.4)
    figure, grid = _grid(images, views + 2, (side, side), "", above=0.2, widths=[1.0, 0.12, *[1.0] * views])
    for row in range(images):
        _show(grid[row, 0], originals[row])
        grid[row, 1].axis("off")
        for view in range(views):
            _show(grid[row, view + 2], augmented[row, view])
    grid[0, 0].set_title("original", fontsize=9, pad=4)
    for view in range(views):
        grid[0, view + 2].set_title(f"augmented {view + 1}", fontsize=9, pad=4)
    return figure


def prediction_grid(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    classes: Sequence[str],
    seed: int = 0,
    limit: int = 24,
) -> Figure:
    """Classified images with label, prediction and score: mistakes first, the surest of them foremost; titles in red.

    Mistakes take up to half of the figure; a random sample of the images classified rightly fills it. Where there are
    not enough of these, more mistakes do.

    Args:
        pixels: uint8[images, size, size, 3], one image or more; only the images shown are read.
        labels: int64[images], index of the class.
        predicted: int64[images], index of the predicted class.
        scores: float32[images], probability of the predicted class.
        classes: class names.
        seed: another one gives another sample.
        limit: images in the figure, 1 or more.

    Raises:
        ValueError: there is no image, or the lengths differ.
    """
    count = len(labels)
    if count == 0 or not len(pixels) == len(predicted) == len(scores) == count:
        raise ValueError(f"{len(pixels)} images, {count} labels, {len(predicted)} predictions, {len(scores)} scores")
    wrong, right = np.flatnonzero(labels != predicted), np.flatnonzero(labels == predicted)
    surest = wrong[np.argsort(-scores[wrong], kind="stable")]
    mistakes = min(len(wrong), max(limit // 2, limit - len(right)))
    sample = np.random.default_rng(seed).choice(right, min(len(right), limit - mistakes), replace=False)
    chosen = np.concatenate([surest[:mistakes], sample]).tolist()
    names = [printable_name(name, 16) for name in classes]
    titles = [
        f"label: {names[labels[index]]}\npredicted: {names[predicted[index]]}\nscore {scores[index]:.3f}"
        for index in chosen
    ]
    heading = f"Mistakes: {f'{mistakes:,} of {len(wrong):,}, the surest first' if len(wrong) else 'none'}. "
    heading += f"Right predictions: {f'{len(sample):,} of {len(right):,}, at random' if len(right) else 'none'}."
    images = np.stack([pixels[index] for index in chosen])
    correct = [bool(labels[index] == predicted[index]) for index in chosen]
    return image_grid(images, titles, columns=6, correct=correct, heading=heading)


def history_figure(history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None) -> Figure:
    """Accuracy, loss and learning rate over the epochs; a dashed line and its name where a stage of training begins.

    Args:
        history: an entry per epoch, in order, with ``stage`` (name), ``accuracy``, ``loss``, ``val_accuracy``,
            ``val_loss`` and ``learning_rate``; other entries are ignored.
        before: ``accuracy`` and ``loss`` on the validation split before the first step, shown at epoch 0.

    Raises:
        ValueError: there is no epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("a history of no epochs has no curves")
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    all_axes: list[Axes] = list(figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2]))
    epochs = np.arange(1, len(history) + 1)
    style: dict[str, Any] = {"marker": "o", "markersize": 4 if len(history) <= 40 else 0, "linewidth": 1.6}
    if len(history) == 1:
        style["markersize"] = 7

    for axes, name in zip(all_axes, ("accuracy", "loss"), strict=False):
        for key, label, colour in ((name, "training", TRAINING), (f"val_{name}", "validation", VALIDATION)):
            axes.plot(epochs, [entry[key] for entry in history], label=label, color=colour, **style)
        if before is not None:
            axes.plot([0], [before[name]], label="validation before training", **FIRST_POINT)
        axes.set_ylabel(name)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    rates = all_axes[2]
    stages = [(name, list(entries)) for name, entries in itertools.groupby(history, key=lambda entry: entry["stage"])]
    begins = np.cumsum([0, *(len(entries) for _, entries in stages)])
    for first, (_, entries) in zip(begins, stages, strict=False):
        values = [entry["learning_rate"] for entry in entries]
        rates.plot(epochs[first : first + len(values)], values, color=MUTED, **style)
    positive = [entry["learning_rate"] for entry in history if entry["learning_rate"] > 0]
    # A learning rate that ends at 0 has no place on a logarithmic axis.
    if len(positive) == len(history) and max(positive) > 9 * min(positive):
        rates.set_yscale("log")
    else:
        rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left = -0.5 if before is not None else 0.5
    rates.set_xlim(left, len(history) + 0.5)

    _name_stages(all_axes, [(name, len(entries)) for name, entries in stages])
    for axes in all_axes:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _name_stages(all_axes: Sequence[Axes], stages: Sequence[tuple[str, int]]) -> None:
    """Lines between stages of so many epochs in all axes, and their names above the first."""
    axes = all_axes[0]
    left, right = axes.get_xlim()
    names = [_drawable(printable_name(str(name), 40)) for name, _ in stages]
    begins = [left, *(np.cumsum([epochs for _, epochs in stages])[:-1] + 0.5).tolist()]
    letters = LETTERS_ACROSS / (right - left)
    fits = [
        len(name) < (end - start) * letters
        for name, start, end in zip(names, begins, [*begins[1:], right], strict=True)
    ]
    for index, (name, start) in enumerate(zip(names, begins, strict=True)):
        if index > 0:
            for each in all_axes:
                each.axvline(start, color=MUTED, linestyle="--", linewidth=1)
        # Where a name is longer than its stage, each has a line of its own.
        line = 0 if all(fits) else len(stages) - 1 - index
        inside = len(name) < (right - start) * letters
        axes.annotate(
            name,
            xy=(start if inside else right, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3 if inside else 0, 4 + 13 * line),
            textcoords="offset points",
            ha="left" if inside else "right",
            fontsize=9,
            color=MUTED,
            parse_math=False,
        )


def architecture_text(model: Any) -> str:
    """The layers of a Keras model, those of nested models below them: shape, parameters, and whether it is trained."""
    texts: list[str] = []
    # Keras has rich draw the table, which cuts it at the terminal's width or 80 letters, whatever line_length says.
    terminal = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(SUMMARY_WIDTH)
    try:
        model.summary(line_length=SUMMARY_WIDTH, print_fn=texts.append, expand_nested=True, show_trainable=True)
    finally:
        del os.environ["COLUMNS"]
        if terminal is not None:
            os.environ["COLUMNS"] = terminal
    return "\n".join(line.rstrip() for text in texts for line in text.splitlines()) + "\n"


def write_architecture(model: Any, folder: Path) -> bool:
    """Write ``model.txt``, the text of :func:`architecture_text`, and ``model.png``, a graph of the layers.

    A small network is drawn with the layers of its nested models; a large one would be too tall to read, so that its
    nested models are boxes.

    Args:
        model: a built Keras model.
        folder: exists; files of these names are replaced.

    Returns:
        Whether there is a picture: it takes the package pydot and Graphviz' program ``dot``.
    """
    from keras import utils

    (folder / "model.txt").write_text(architecture_text(model), encoding="utf-8")
    picture = folder / "model.png"
    try:
        utils.plot_model(
            model,
            to_file=picture,
            show_shapes=True,
            show_layer_names=True,
            expand_nested=_layer_count(model) <= EXPANDED_LAYERS,
            dpi=100,
        )
    except (ImportError, OSError, AssertionError):
        # pydot raises AssertionError where dot fails. A training must not be lost to a missing picture of it.
        picture.unlink(missing_ok=True)
    return picture.exists()


def _layer_count(model: Any) -> int:
    return sum(_layer_count(layer) if hasattr(layer, "layers") else 1 for layer in model.layers)


def _side(images: int, least: float, most: float) -> float:
    """Inches of an image's side."""
    return float(np.clip(np.sqrt(IMAGES_AREA / images), least, most))


def _grid(
    rows: int,
    columns: int,
    cell: tuple[float, float],
    heading: str,
    left: float = 0.0,
    above: float = 0.0,
    widths: Sequence[float] | None = None,
) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure of axes[rows, columns] for cells of a width and height in inches, with room on the left and above."""
    from matplotlib.figure import Figure

    width, height = cell
    gap = 0.1
    across = left + width * (sum(widths) if widths else columns) + gap * columns
    lines = textwrap.wrap(_drawable(heading), max(20, int(across / 0.08)))
    figure = Figure(figsize=(across, above + rows * (height + gap) + 0.2 * len(lines)))
    figure.set_layout_engine("constrained", w_pad=gap / 2, h_pad=gap / 2, wspace=0.0, hspace=0.0)
    if lines:
        figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=widths)


def _show(axes: Axes, pixels: npt.NDArray[np.uint8]) -> None:
    axes.imshow(pixels)
    _blank(axes, frame=True)


def _blank(axes: Axes, frame: bool = False) -> None:
    """Nothing but room, and the label of a row: ``axis("off")`` would hide that too."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=frame, linewidth=0.5, color="#999999")


def _frame(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set(linewidth=2.0, color=colour)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(_drawable(printable_name(name)), 18, max_lines=3)) or "(no name)"


def _drawable(text: str) -> str:
    """The text with a replacement for each letter that the font lacks, of which matplotlib would warn."""
    known = _font().get_charmap()
    return "".join(letter if letter == "\n" or ord(letter) in known else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _fitting_size(title: str, inches: float) -> float:
    """The size in points at which the longest line of a title above an image is as wide as the image, 7.5 at most."""
    font = _font()
    font.set_size(TITLE_SIZE, 72)
    points = 1.0
    for line in title.split("\n"):
        font.set_text(line)
        points = max(points, font.get_width_height()[0] / 64)
    return min(TITLE_SIZE, TITLE_SIZE * 72 * inches / points)


def _font() -> FT2Font:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))
