"""The small model's answers as numbers that are checked in: no engine, decoder or upgrade may move them unseen.

After the model was replaced on purpose, ``python tests/test_golden.py`` writes the numbers anew.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import SHARED

from model.bundle import PRETRAINED, open_bundle
from model.engine import open_engine
from model.lookahead import chunked, map_ahead
from model.preprocess import preprocess
from model.synthetic import draw_image

GOLDEN = Path(__file__).with_name("golden.json")
IMAGES = SHARED / "data" / "metu"
TOLERANCE = 1e-4
DRAWN = 16
REAL_STEP = 250

needs_images = pytest.mark.skipif(not IMAGES.is_dir(), reason=f"needs the METU images under {SHARED}")


def drawn_images():
    return {str(index): draw_image(index).encoded for index in range(DRAWN)}


def real_paths():
    return sorted(IMAGES.glob("*tive/*"))


def real_images():
    return {path.relative_to(IMAGES).as_posix(): path.read_bytes() for path in real_paths()[::REAL_STEP]}


def probabilities(engine_name, encoded):
    """float32[images, classes] of the model that comes with the package; images are given as bytes."""
    bundle = open_bundle(PRETRAINED)
    engine = open_engine(engine_name, bundle, 2)

    def answer(chunk):
        pixels = np.stack([preprocess(data, bundle.spec.image_size).pixels for data in chunk])
        return engine.predict(pixels).probabilities

    return np.concatenate(list(map_ahead(answer, chunked(encoded, engine.batch_size), 2)))


def of_positive(engine_name, images):
    return dict(zip(images, probabilities(engine_name, images.values())[:, 1].astype(float), strict=True))


def golden():
    values = json.loads(GOLDEN.read_bytes())
    fingerprint = open_bundle(PRETRAINED).spec.fingerprint
    assert values["fingerprint"] == fingerprint, "another model: python tests/test_golden.py"
    return values


@pytest.mark.parametrize("engine", ["litert", "savedmodel"])
def test_drawn_images_have_the_golden_probabilities(engine):
    assert of_positive(engine, drawn_images()) == pytest.approx(golden()["drawn"], abs=TOLERANCE)


@needs_images
@pytest.mark.parametrize("engine", ["litert", "savedmodel"])
def test_real_images_have_the_golden_probabilities(engine):
    assert of_positive(engine, real_images()) == pytest.approx(golden()["real"], abs=TOLERANCE)


@needs_images
def test_engines_agree_on_every_real_image():
    paths = real_paths()
    litert, saved_model = (
        probabilities(engine, (path.read_bytes() for path in paths)) for engine in ("litert", "savedmodel")
    )
    assert len(litert) == len(paths) > 10_000
    assert np.abs(litert - saved_model).max() < TOLERANCE
    assert (litert.argmax(axis=1) == saved_model.argmax(axis=1)).all()


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps(
            {
                "fingerprint": open_bundle(PRETRAINED).spec.fingerprint,
                "drawn": of_positive("litert", drawn_images()),
                "real": of_positive("litert", real_images()),
            },
            indent=1,
        )
        + "\n"
    )
