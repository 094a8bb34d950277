"""What the figures of a training show: texts, colours, pixels, and that nothing covers anything."""

import io
import os
import shutil

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from model import figures

ODD = (
    *("sound", "$x$ of $5", "two\nlines", "שלום", "ひび割れ", "\N{RIGHT-TO-LEFT OVERRIDE}turned", ""),
    *("a very long name of a class that ends at no reasonable width at all", "W" * 80, "ten", "eleven", "twelve"),
)


def images(count, size=12, seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, size, size, 3), dtype=np.uint8)


def shown(figure):
    """The axes that hold an image."""
    return [axes for axes in figure.axes if axes.images]


def pixels_of(axes):
    return np.asarray(axes.images[0].get_array())


def saved(figure):
    """Width, height and bytes of the figure as PNG; a warning of matplotlib's is an error here."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return *Image.open(stream).size, len(stream.getvalue())


def assert_texts_are_apart_and_inside(figure):
    width, height, _ = saved(figure)
    texts = [axes.title for axes in figure.axes] + [axes.yaxis.label for axes in figure.axes]
    texts += [text for axes in figure.axes for text in axes.texts] + figure.texts
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    boxes += [axes.get_window_extent() for axes in shown(figure)]
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 0.5 or down <= 0.5


def test_image_grid_shows_each_image_under_its_title():
    pixels = images(5)
    titles = ["one", "two\nlines", "$a$", "four", r"\frac$"]
    figure = figures.image_grid(pixels, titles, columns=3, heading="five images")
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in shown(figure)] == titles
    assert all((pixels_of(axes) == each).all() for axes, each in zip(shown(figure), pixels, strict=True))
    assert figure.get_suptitle() == "five images"
    assert {to_hex(axes.title.get_color()) for axes in shown(figure)} == {"#000000"}
    positions = [axes.get_subplotspec().colspan.start for axes in shown(figure)]
    assert positions == [0, 1, 2, 0, 1]
    assert_texts_are_apart_and_inside(figure)


def test_image_grid_marks_mistakes():
    figure = figures.image_grid(images(3), ["a", "b", "c"], columns=3, correct=[True, False, True])
    colours = [to_hex(axes.title.get_color()) for axes in figure.axes]
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes]
    assert colours == [figures.RIGHT, figures.WRONG, figures.RIGHT]
    assert [frame == figures.WRONG for frame in frames] == [False, True, False]


@pytest.mark.parametrize("arguments", [(0, []), (2, ["a"]), (2, ["a", "b"], [True])])
def test_image_grid_refuses_what_does_not_match(arguments):
    count, titles, *correct = arguments
    with pytest.raises(ValueError, match=f"{count} images, {len(titles)} titles"):
        figures.image_grid(images(count), titles, 2, *correct)


def test_sample_grid_has_a_row_of_images_per_class():
    pixels, labels = images(40), np.repeat([0, 1, 2], [30, 9, 1])
    figure = figures.sample_grid(pixels, labels, ("sound", "crack", "spalling"), per_class=4, seed=3)
    grid = np.array(figure.axes).reshape(3, 4)
    assert [row[0].get_ylabel() for row in grid] == ["sound\n30 images", "crack\n9 images", "spalling\n1 image"]
    for row, members in zip(grid, (pixels[:30], pixels[30:39], pixels[39:]), strict=True):
        chosen = [pixels_of(axes) for axes in row if axes.images]
        assert len(chosen) == min(4, len(members))
        found = [np.flatnonzero((members == image).all(axis=(1, 2, 3))).item() for image in chosen]
        assert len(set(found)) == len(found)
    assert_texts_are_apart_and_inside(figure)


def test_sample_grid_shows_the_numbers_of_images_that_it_is_told():
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    figure = figures.sample_grid(pixels, np.array([0, 1]), ("a", "b"), per_class=1, counts=[1234, 1])
    assert [axes.get_ylabel() for axes in figure.axes] == ["a\n1,234 images", "b\n1 image"]


def test_sample_grid_depends_on_its_seed_only():
    def chosen(seed):
        figure = figures.sample_grid(images(60), np.arange(60) % 2, ("a", "b"), 5, seed)
        return np.stack([pixels_of(axes) for axes in figure.axes])

    assert (chosen(1) == chosen(1)).all()
    assert (chosen(1) != chosen(2)).any()


def test_sample_grid_of_many_classes_with_odd_names():
    labels = np.arange(100) % 12
    labels[labels == 9] = 0
    figure = figures.sample_grid(images(100), labels, ODD)
    grid = np.array(figure.axes).reshape(10, 8)
    names = [row[0].get_ylabel() for row in grid]
    assert names[:3] == ["sound\n17 images", "$x$ of $5\n9 images", "two\N{REPLACEMENT CHARACTER}lines\n9 images"]
    assert names[4] == "\N{REPLACEMENT CHARACTER}" * 4 + "\n8 images"
    assert names[6] == "(no name)\n8 images"
    assert names[9] == "ten\n0 images"
    assert not any(axes.images for axes in grid[9])
    assert all(len(line) <= 18 for name in names for line in name.splitlines())
    assert figure.get_suptitle() == "Random images of the first 10 of 12 classes"
    assert_texts_are_apart_and_inside(figure)


def test_augmented_grid_shows_the_original_first():
    originals, augmented = images(3), images(12, seed=1).reshape(3, 4, 12, 12, 3)
    figure = figures.augmented_grid(originals, augmented)
    grid = np.array(shown(figure)).reshape(3, 5)
    assert [axes.get_title() for axes in grid[0]] == ["original", *(f"augmented {view}" for view in range(1, 5))]
    for row in range(3):
        assert (pixels_of(grid[row, 0]) == originals[row]).all()
        assert all((pixels_of(grid[row, view + 1]) == augmented[row, view]).all() for view in range(4))
    assert_texts_are_apart_and_inside(figure)
    left = [axes.get_position().x0 for axes in grid[0]]
    assert left[1] - left[0] > 1.05 * (left[2] - left[1])


@pytest.mark.parametrize("shape", [(2, 3), (3, 0), (0, 3)])
def test_augmented_grid_refuses_what_does_not_match(shape):
    with pytest.raises(ValueError, match="no match, or none"):
        figures.augmented_grid(images(3 if shape[0] else 0), np.zeros((*shape, 12, 12, 3), np.uint8))


def classified(count, mistakes, classes=2):
    """Images with labels; the first ones are mistaken, each with another score."""
    labels = np.arange(count) % classes
    predicted = labels.copy()
    predicted[:mistakes] = (labels[:mistakes] + 1) % classes
    scores = np.random.default_rng(5).permutation(np.linspace(0.5, 0.999, count)).astype(np.float32)
    return images(count), labels, predicted, scores


@pytest.mark.parametrize(
    ("count", "mistakes", "limit", "shown_mistakes", "shown_right"),
    [(200, 5, 24, 5, 19), (200, 60, 24, 12, 12), (30, 0, 24, 0, 24), (10, 2, 24, 2, 8), (30, 28, 10, 8, 2)],
)
def test_prediction_grid_shows_mistakes_first(count, mistakes, limit, shown_mistakes, shown_right):
    pixels, labels, predicted, scores = classified(count, mistakes)
    figure = figures.prediction_grid(pixels, labels, predicted, scores, ("sound", "crack"), seed=1, limit=limit)
    indices = [np.flatnonzero((pixels == pixels_of(axes)).all(axis=(1, 2, 3))).item() for axes in shown(figure)]
    assert len(set(indices)) == len(indices)
    assert indices[:shown_mistakes] == sorted(range(mistakes), key=lambda index: -scores[index])[:shown_mistakes]
    assert len(indices[shown_mistakes:]) == shown_right
    assert all(index >= mistakes for index in indices[shown_mistakes:])
    for axes, index in zip(shown(figure), indices, strict=True):
        names = [("sound", "crack")[each] for each in (labels[index], predicted[index])]
        assert axes.get_title() == f"label: {names[0]}\npredicted: {names[1]}\nscore {scores[index]:.3f}"
        assert to_hex(axes.title.get_color()) == (figures.WRONG if index < mistakes else figures.RIGHT)
    heading = figure.get_suptitle().replace("\n", " ")
    told = f"{shown_mistakes} of {mistakes}, the surest first" if mistakes else "none"
    assert heading == f"Mistakes: {told}. Right predictions: {shown_right} of {count - mistakes}, at random."
    assert_texts_are_apart_and_inside(figure)


def test_prediction_grid_of_odd_class_names():
    figure = figures.prediction_grid(*classified(48, 20, 12), ODD)
    assert_texts_are_apart_and_inside(figure)
    titles = "\n".join(axes.get_title() for axes in shown(figure))
    assert "label: $x$ of $5\n" in titles
    assert "label: WWW\N{HORIZONTAL ELLIPSIS}WWWWWWWWWWWW\n" in titles


def test_prediction_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 images, 0 labels"):
        figures.prediction_grid(*(each[:0] for each in classified(3, 1)), ("a", "b"))


def test_a_figure_of_noise_is_a_file_of_bearable_size():
    _, labels, predicted, scores = classified(40, 10)
    noise = np.random.default_rng(0).integers(90, 160, size=(40, 224, 224, 3), dtype=np.uint8)
    *_, size = saved(figures.prediction_grid(noise, labels, predicted, scores, ("sound", "crack")))
    assert 100_000 < size < 1_500_000


def history(*stages):
    """Entries of stages, each (name, epochs, learning rate)."""
    entries = []
    for name, epochs, rate in stages:
        for epoch in range(1, epochs + 1):
            done = len(entries) + 1
            entries.append(
                {
                    "stage": name,
                    "epoch": epoch,
                    "accuracy": 1 - 0.3 / done,
                    "loss": 0.6 / done,
                    "val_accuracy": 1 - 0.4 / done,
                    "val_loss": 0.7 / done,
                    "learning_rate": rate / epoch,
                    "seconds": 1.5,
                }
            )
    return entries


def curves(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines if not line.get_label().startswith("_")}


def test_history_figure_draws_each_number():
    entries = history(("head", 3, 1e-3), ("fine-tuning", 4, 1e-5))
    figure = figures.history_figure(entries, {"accuracy": 0.5, "loss": 0.9})
    accuracy, loss, rates = figure.axes
    for axes, name, before in ((accuracy, "accuracy", 0.5), (loss, "loss", 0.9)):
        assert axes.get_ylabel() == name
        drawn = curves(axes)
        assert drawn["training"] == [[epoch, entry[name]] for epoch, entry in enumerate(entries, 1)]
        assert drawn["validation"] == [[epoch, entry[f"val_{name}"]] for epoch, entry in enumerate(entries, 1)]
        assert drawn["validation before training"] == [[0, before]]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [3.5]
    steps = [line.get_xydata().tolist() for line in rates.lines if line.get_linestyle() == "-"]
    assert [len(step) for step in steps] == [3, 4]
    assert [*steps[0], *steps[1]] == [[epoch, entry["learning_rate"]] for epoch, entry in enumerate(entries, 1)]
    assert (rates.get_yscale(), rates.get_xlabel()) == ("log", "epoch")
    assert [text.get_text() for text in accuracy.texts] == ["head", "fine-tuning"]
    assert [text.xy[0] for text in accuracy.texts] == [-0.5, 3.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(curves(accuracy))
    assert_texts_are_apart_and_inside(figure)


@pytest.mark.parametrize("before", [None, {"accuracy": 0.4, "loss": 0.8}])
def test_history_figure_of_one_epoch_shows_points(before):
    figure = figures.history_figure(history(("whole", 1, 1e-3)), before)
    saved(figure)
    expected = ([0] if before else []) + [1]
    left, right = figure.axes[2].get_xlim()
    assert [tick for tick in figure.axes[2].get_xticks() if left <= tick <= right] == expected
    assert all(line.get_marker() != "None" and line.get_markersize() > 3 for line in figure.axes[0].lines)
    assert ("validation before training" in curves(figure.axes[0])) == bool(before)
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["whole"]


@pytest.mark.parametrize(
    "stages",
    [
        (("head", 1, 1e-3), ("fine-tuning", 60, 1e-5)),
        (("head", 60, 1e-3), ("a long name of fine-tuning", 1, 1e-5)),
        (("$head$ on features", 2, 1e-3), ("the last layers", 2, 1e-4), ("all\nlayers", 40, 1e-5)),
    ],
)
def test_names_of_short_stages_do_not_cover_each_other(stages):
    figure = figures.history_figure(history(*stages))
    assert_texts_are_apart_and_inside(figure)
    assert len({text.xyann[1] for text in figure.axes[0].texts}) == len(stages)
    assert figure.axes[0].get_position().width > 0.85


def test_a_learning_rate_of_zero_has_a_linear_axis():
    entries = history(("whole", 5, 1e-3))
    entries[-1]["learning_rate"] = 0.0
    rates = figures.history_figure(entries).axes[2]
    assert rates.get_yscale() == "linear"
    assert rates.get_ylim()[0] == 0


def test_a_history_of_no_epochs_is_refused():
    with pytest.raises(ValueError, match="no epochs"):
        figures.history_figure([])


@pytest.fixture(scope="module")
def classifier():
    """A Keras model with a frozen model inside."""
    from keras import Model, Sequential, layers

    inner = Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, name="convolution"), layers.Flatten(name="flat")], name="backbone"
    )
    inner.trainable = False
    pixels = layers.Input((8, 8, 3), name="pixels")
    return Model(pixels, layers.Dense(2, name="probabilities")(inner(pixels)), name="classifier")


@pytest.mark.parametrize("columns", [None, "30"])
def test_architecture_text_is_whole_whatever_the_terminal(classifier, monkeypatch, columns):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    text = figures.architecture_text(classifier)
    assert os.environ.get("COLUMNS") == columns
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["└ convolution (Conv2D)"]] == ["(None, 6, 6, 4)", "112", "N"]
    assert [cell.strip() for cell in rows["probabilities (Dense)"]] == ["(None, 2)", "290", "Y"]
    assert "Total params: 402" in text
    assert max(map(len, text.splitlines())) == figures.SUMMARY_WIDTH


def test_write_architecture_draws_the_layers(classifier, tmp_path, monkeypatch):
    pytest.importorskip("pydot")
    if shutil.which("dot") is None:
        pytest.skip("needs Graphviz' dot")
    assert figures.write_architecture(classifier, tmp_path)
    assert (tmp_path / "model.txt").read_text(encoding="utf-8") == figures.architecture_text(classifier)
    with Image.open(tmp_path / "model.png") as picture:
        expanded = picture.size
    monkeypatch.setattr(figures, "EXPANDED_LAYERS", 1)
    assert figures.write_architecture(classifier, tmp_path)
    with Image.open(tmp_path / "model.png") as picture:
        assert expanded[1] > picture.size[1] > 100


def test_write_architecture_without_graphviz_writes_the_text(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "model.png").write_bytes(b"of another model")
    assert not figures.write_architecture(classifier, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.txt"]


def test_write_architecture_survives_a_broken_dot(classifier, tmp_path, monkeypatch):
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert not figures.write_architecture(classifier, tmp_path)
    assert not (tmp_path / "model.png").exists()
