"""One work unit: every image in one table, in input order, with the numbers of the engine."""

import hashlib
import io

import numpy as np
import pytest
from helpers import jpeg
from PIL import Image

from model.bundle import open_bundle
from model.engine import LiteRtEngine
from model.preprocess import preprocess
from model.synthetic import draw_image
from pipelines.classification import THUMBNAILS_PER_UNIT, classify
from pipelines.records import FAILURE_SCHEMA, PREDICTION_SCHEMA, Failure, ImageRecord, ShardError


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(str(tiny_bundle))


@pytest.fixture(scope="module")
def engine(bundle):
    return LiteRtEngine(bundle, threads=2)


def record(position: int, encoded: bytes | None = None, label: str | None = None) -> ImageRecord:
    return ImageRecord(f"{position}.jpg", ".", position, jpeg(position) if encoded is None else encoded, label)


def test_every_image_is_in_exactly_one_table_in_input_order(bundle, engine):
    bad = {3: b"", 4: b"no image", 11: jpeg(11)[:300], 21: b"\xff\xd8\xff"}
    images = [record(position, bad.get(position)) for position in range(25)]
    images[7] = Failure("7.jpg", ".", 7, "read", "missing", "gone")
    tables = classify(images, engine, bundle.spec, threads=2)
    failed = [*bad, 7]
    assert tables.predictions["position"].to_pylist() == [p for p in range(25) if p not in failed]
    assert tables.failures["position"].to_pylist() == sorted(failed)
    codes = dict(zip(tables.failures["position"].to_pylist(), tables.failures["code"].to_pylist(), strict=True))
    assert codes == {3: "empty", 4: "not_an_image", 7: "missing", 11: "truncated", 21: codes[21]}
    assert tables.predictions.schema.equals(PREDICTION_SCHEMA)
    assert tables.failures.schema.equals(FAILURE_SCHEMA)
    assert tables.counts.rows == 20
    assert tables.shard_error is None


def test_a_row_holds_what_the_engine_says_of_the_preprocessed_image(bundle, engine):
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(stream, "PNG")
    (row,) = classify([record(0, stream.getvalue(), "Positive")], engine, bundle.spec, 1).predictions.to_pylist()
    pixels = preprocess(stream.getvalue(), bundle.spec.image_size).pixels
    expected = engine.predict(pixels[None]).probabilities[0]
    assert row["probabilities"] == expected.tolist()
    assert row["score"] == pytest.approx(float(expected.max()))
    assert row["predicted_class"] == bundle.spec.classes[int(expected.argmax())]
    assert (row["width"], row["height"], row["brightness"], row["label"]) == (60, 40, 99.0, "Positive")
    assert row["image_sha256"] == hashlib.sha256(stream.getvalue()).hexdigest()
    assert row["model_fingerprint"] == bundle.spec.fingerprint


def test_the_number_of_threads_changes_no_byte(bundle, engine):
    images = [record(position, label=("Positive", "Negative")[position % 2]) for position in range(50)]
    one, four = (classify(images, engine, bundle.spec, threads) for threads in (1, 4))
    assert one.predictions.equals(four.predictions)
    assert one.thumbnails.equals(four.thumbnails)
    assert one.counts.to_json() == four.counts.to_json()


def test_a_shard_that_ends_early_keeps_what_came_before(bundle, engine):
    def cut():
        yield from (record(position) for position in range(11))
        raise ShardError("truncated", "cut at byte 5")

    tables = classify(cut(), engine, bundle.spec, 2)
    assert tables.predictions.num_rows == 11
    assert str(tables.shard_error) == "cut at byte 5"


def test_a_unit_without_images_has_empty_tables(bundle, engine):
    tables = classify([], engine, bundle.spec, 2)
    assert tables.predictions.num_rows == tables.failures.num_rows == tables.thumbnails.num_rows == 0
    assert tables.predictions.schema.equals(PREDICTION_SCHEMA)


def test_the_images_in_memory_do_not_grow_with_the_unit(bundle, engine):
    most = read = done = 0

    def images():
        nonlocal read, most
        for position in range(400):
            read += 1
            most = max(most, read - done)
            yield record(position, encoded)

    def count(images: int) -> None:
        nonlocal done
        done += images

    encoded = jpeg(0)
    classify(images(), engine, bundle.spec, 2, count)
    assert done == 400
    assert most <= 5 * engine.batch_size


def test_thumbnails_are_the_most_confident_mistakes(bundle, engine):
    images = [record(n, draw_image(n).encoded, ("Positive", "Negative")[n % 2]) for n in range(60)]
    tables = classify(images, engine, bundle.spec, 2)
    rows = tables.predictions.to_pylist()
    mistakes = sorted((row for row in rows if row["label"] != row["predicted_class"]), key=lambda row: -row["score"])
    assert len(mistakes) > THUMBNAILS_PER_UNIT
    shown = tables.thumbnails.to_pylist()
    assert [row["score"] for row in shown] == [row["score"] for row in mistakes[:THUMBNAILS_PER_UNIT]]
    assert all(row["label"] != row["predicted_class"] for row in shown)
    thumbnail = Image.open(io.BytesIO(shown[0]["jpeg"]))
    assert thumbnail.size == (bundle.spec.image_size, bundle.spec.image_size)


def test_thumbnails_of_unlabelled_images_are_the_least_certain(bundle, engine):
    tables = classify([record(n, draw_image(n).encoded) for n in range(40)], engine, bundle.spec, 2)
    scores = sorted(tables.predictions["score"].to_pylist())
    assert tables.thumbnails["score"].to_pylist() == scores[:THUMBNAILS_PER_UNIT]


def test_a_label_that_is_no_class_is_kept_and_counted_apart(bundle, engine):
    tables = classify([record(0, label="moss"), record(1, label="Positive")], engine, bundle.spec, 1)
    assert tables.predictions["label"].to_pylist() == ["moss", "Positive"]
    assert tables.counts.labelled == 1
    assert tables.counts.unknown_labels == {"moss": 1}
    assert "moss" not in tables.thumbnails["label"].to_pylist()
