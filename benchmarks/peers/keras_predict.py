"""Keras: ``image_dataset_from_directory`` and ``predict``, as the guides on keras.io write it."""

from __future__ import annotations

import os
import time

from benchmarks.task import Task, report, write_answers


def main(task: Task) -> None:
    import keras

    dataset = keras.utils.image_dataset_from_directory(
        task.images, image_size=(task.image_size, task.image_size), batch_size=32, shuffle=False
    )
    model = keras.models.load_model(os.path.join(task.bundle, "model.keras"))
    started = time.perf_counter()
    probabilities = model.predict(dataset, verbose=0)["probabilities"]
    seconds = time.perf_counter() - started
    write_answers(task, dataset.file_paths, probabilities)
    report(len(probabilities), seconds)


if __name__ == "__main__":
    main(Task.from_arguments())
