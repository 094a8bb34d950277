"""The peer of a training with a frozen backbone: the plain script that the guides on keras.io teach.

It knows nothing of crackscan: folders of images in, a SavedModel and one line of JSON out.
"""

from __future__ import annotations

import argparse
import json
import os

DESCRIPTION = """\
Train a softmax head on a frozen MobileNetV2 as the transfer learning guide of keras.io does: folders of images by
image_dataset_from_directory, fit over all images in each epoch, evaluate on the test images, export a SavedModel.
The last line of the output is JSON: test accuracy, number of test images, device.
"""

EXAMPLES = """\
examples:
  python -m benchmarks.training_peer --images files/ --weights mobilenet_v2.h5 --out peer
  python -m benchmarks.training_peer --images files/ --weights none --out peer --image-size 32 --epochs 1    a quick try
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m benchmarks.training_peer",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument(
        "--images", required=True, metavar="DIR", help="holds train, val and test, each a folder of images per class"
    )
    options.add_argument("--weights", required=True, metavar="imagenet|none|PATH", help="of the backbone")
    options.add_argument("--out", required=True, metavar="DIR", help="for the SavedModel")
    options.add_argument("--image-size", type=int, default=160, metavar="N", help="side in pixels (%(default)s)")
    options.add_argument("--batch-size", type=int, default=32, metavar="N", help="(%(default)s)")
    options.add_argument("--epochs", type=int, default=5, metavar="N", help="(%(default)s)")
    options.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="of Adam (%(default)s)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate and export."""
    options = parser().parse_args(arguments)

    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(options.seed)
    train, validation, test = (
        keras.utils.image_dataset_from_directory(
            os.path.join(options.images, split),
            label_mode="categorical",
            batch_size=options.batch_size,
            image_size=(options.image_size, options.image_size),
            shuffle=split == "train",
        )
        for split in ("train", "val", "test")
    )
    classes = len(train.class_names)
    images = len(test.file_paths)
    train, validation, test = (dataset.prefetch(tf.data.AUTOTUNE) for dataset in (train, validation, test))

    shape = (options.image_size, options.image_size, 3)
    weights = None if options.weights == "none" else options.weights
    backbone = keras.applications.MobileNetV2(input_shape=shape, include_top=False, weights=weights, pooling="avg")
    backbone.trainable = False
    pixels = keras.Input(shape)
    features = backbone(keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels), training=False)
    model = keras.Model(pixels, keras.layers.Dense(classes, activation="softmax")(features))
    optimizer = keras.optimizers.Adam(options.learning_rate)
    model.compile(optimizer=optimizer, loss="categorical_crossentropy", metrics=["accuracy"])

    model.fit(train, epochs=options.epochs, validation_data=validation, verbose=2)
    _, accuracy = model.evaluate(test, verbose=0)
    model.export(os.path.join(options.out, "saved_model"), verbose=False)

    devices = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in devices]
    print(json.dumps({"accuracy": float(accuracy), "images": images, "device": ", ".join(names) or "CPU"}), flush=True)


if __name__ == "__main__":
    main()
