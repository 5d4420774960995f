"""CIFAR-10, from wherever it is: a folder, an archive, the download, or (only for a trial) made-up images."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.cifar10 import download
from examples.cifar10.errors import DataError, DownloadError
from examples.cifar10.layouts import BINARY, CLASSES, LAYOUTS, PIXELS, Layout, Records, read

GENERATED = "generated images, not CIFAR-10"


@dataclass(frozen=True)
class Split:
    """`images`: uint8, (n, 3, 32, 32), channels last in memory; `labels`: int64, (n,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Split:
        """There, on a GPU channel by channel in memory."""
        images = self.images.contiguous() if device.type == "cuda" else self.images
        return Split(images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Cifar10:
    """`sha256` is that of the six official binary files in a row, whatever layout the data came in.

    `why_generated` says why there are made-up images instead.
    """

    train: Split
    test: Split
    source: str
    sha256: str
    why_generated: str = ""

    def to(self, device: torch.device) -> Cifar10:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    @property
    def generated(self) -> bool:
        return self.source == GENERATED


def load(directory: Path | None, *, allow_generated: bool = False) -> Cifar10:
    """The data in `directory`, or else in the cache folder, in `./data` (torchvision's habit), or downloaded.

    `allow_generated` puts made-up images in place of a download that fails, and of nothing else.
    Raises DataError for everything that is missing, incomplete or damaged.
    """
    if directory is not None:
        found = _find(directory)
        if found is None:
            raise DataError(
                f"{directory}: no CIFAR-10 there. The folder must be, or hold, one of "
                + ", ".join(name for layout in LAYOUTS for name in (layout.folder, layout.archive))
                + ". Correct --data, or leave it out to download the data."
            )
        return _from_records(*read(*found), str(found[1]))
    download.tidy(cache_folder(), download.URL)
    for place in (cache_folder(), Path("data")):
        if found := _find(place):
            return _from_records(*read(*found), str(found[1]))
    try:
        archive = download.download(cache_folder(), download.URL, download.MD5)
    except DownloadError as error:
        if not allow_generated:
            raise
        return replace(_from_records(*_generate(), GENERATED), why_generated=str(error))
    return _from_records(*read(BINARY, archive), str(archive))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sigscale" / "cifar10"


def _find(place: Path) -> tuple[Layout, Path] | None:
    """The data set at `place` as its layout and its folder or archive."""
    for layout in LAYOUTS:
        if any((place / file).exists() for file in layout.files):
            return layout, place
        if place.name == layout.archive and place.is_file():
            return layout, place
        for inner in (place / layout.folder, place / layout.archive):
            if inner.exists():
                return layout, inner
    return None


def _generate() -> tuple[Records, Records]:
    """16,000 + 2,000 images: each class has a coarse pattern of its own, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (CLASSES, 3, 4, 4), dtype=np.int16).repeat(8, axis=2).repeat(8, axis=3)
    labels = rng.integers(0, CLASSES, 18_000)
    noise = rng.integers(-80, 81, (len(labels), PIXELS), dtype=np.int16)
    pixels = (patterns.reshape(CLASSES, PIXELS)[labels] + noise).clip(0, 255)
    records = np.concatenate([labels[:, None].astype(np.uint8), pixels.astype(np.uint8)], axis=1)
    return records[:16_000], records[16_000:]


def _from_records(train: Records, test: Records, source: str) -> Cifar10:
    digest = hashlib.sha256(train.data)
    digest.update(test.data)
    return Cifar10(_split(train), _split(test), source, digest.hexdigest())


def _split(records: Records) -> Split:
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    return Split(images.contiguous(memory_format=torch.channels_last), labels)
