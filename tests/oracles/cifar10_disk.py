"""CIFAR-10 in small, as it lies on a disk: both layouts and their archives."""

import tarfile

import numpy as np

from examples.cifar10 import data

RECORDS = 40
FILES = (*data.TRAIN, data.TEST)


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
