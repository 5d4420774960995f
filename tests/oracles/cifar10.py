"""What the tests of the CIFAR-10 example share: data of its shape, also on disk, pipelines, finished runs."""

import tarfile

import numpy as np
import torch

from examples.cifar10 import data
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.pipelines import ALSO, FIGURES, unique
from examples.cifar10.train import Run, Settings, train_epoch

RECORDS = 40  # in a file
FILES = (*data.TRAIN, data.TEST)
CPU = torch.device("cpu")
SETTINGS = Settings(epochs=3, batch=8)
PIPELINES = {pipeline.name: pipeline for pipeline in unique(FIGURES.values())}
BEYOND = {pipeline.name: pipeline for pipeline in unique(ALSO.values()) if pipeline.name not in PIPELINES}
TANH, SCALED, RELU, RELU_PENALTY = FIGURES["3"].pipelines


def split(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Split(pixels.contiguous(memory_format=torch.channels_last), labels)


CIFAR = Cifar10(split(70, 0), split(30, 1), "a test", "0")


def trained(pipeline=SCALED, seeds=(0, 1), epochs=3, settings=SETTINGS):
    run = Run(pipeline, seeds, settings, CIFAR, CPU)
    for _ in range(epochs):
        train_epoch([run])
    return run


def same(one, other):
    return (
        np.array_equal(one.history, other.history, equal_nan=True)
        and all(map(torch.equal, one.network.parameters(), other.network.parameters()))
        and same_history(one.monitor.history(), other.monitor.history())
    )


def same_history(one, other):
    return all(
        np.array_equal(getattr(one, field), getattr(other, field), equal_nan=field == "values")
        for field in ("steps", "names", "kinds", "quantiles", "thresholds", "values", "step_count")
    )


def batch(index):
    rng = np.random.default_rng(index)
    records = rng.integers(0, 256, (RECORDS, 1 + data.PIXELS), dtype=np.uint8)
    records[:, 0] %= 10
    return records


def write(layout, folder, encode):
    target = folder / layout.folder
    target.mkdir(parents=True)
    for index, name in enumerate(FILES):
        (target / (name + layout.suffix)).write_bytes(encode(batch(index)))
    return target


def write_binary(folder):
    return write(data.BINARY, folder, np.ndarray.tobytes)


def pack(layout, folder, prefix=""):
    archive = folder / layout.archive
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / layout.folder, prefix + layout.folder)
    return archive
