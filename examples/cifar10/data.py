"""CIFAR-10 from a folder, an archive or a download; for trials without a network, generated images.

Both official layouts are read, from a folder or straight from the `.tar.gz`.  The order of the images may
differ from the official one, so data the user brings needs no particular checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from examples.cifar10.runtime import DataError, DownloadError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""As published on https://www.cs.toronto.edu/~kriz/cifar.html."""
TIMEOUT_SECONDS = 20
GENERATED = "generated images, not CIFAR-10"

Array = npt.NDArray[Any]
Records = npt.NDArray[np.uint8]
"""(n, 1 + PIXELS): the label, then the pixels, channel by channel."""
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
RECORDS = 10_000
PIXELS = 3 * 32 * 32
CLASSES = 10
REPLACE = (
    "Replace it with the official one (https://www.cs.toronto.edu/~kriz/cifar.html), "
    "or delete it and start without --data to download the data."
)


@dataclass(frozen=True)
class Split:
    """`images`: uint8, (n, 3, 32, 32), channels last in memory; `labels`: int64, (n,)."""

    images: Tensor
    labels: Tensor

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels from -1 to 1, and the labels."""
        return self.images[chosen] / 127.5 - 1, self.labels[chosen]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Of a model that takes what `batch` gives."""
        batches = [self.batch(chosen) for chosen in torch.arange(len(self.labels)).split(1000)]
        return sum(int((model(x).argmax(1) == labels).sum()) for x, labels in batches) / len(self.labels)

    def to(self, device: torch.device) -> Split:
        """A copy there; on a GPU, contiguous."""
        images = self.images.contiguous() if device.type == "cuda" else self.images
        return Split(images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Cifar10:
    """`sha256` is that of the six official binary files in sequence, whatever the layout of the source.

    `why_generated` says why the images are generated.
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


@dataclass(frozen=True)
class Layout:
    folder: str
    suffix: str
    archive: str
    decode: Callable[[bytes], tuple[Array, Array]]
    """File content -> labels (n,) and pixels (n, PIXELS)."""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(batch + self.suffix for batch in (*TRAIN, TEST))


def load(directory: Path | None, *, allow_generated: bool = False) -> Cifar10:
    """The data in `directory`, or else in the cache folder, in `./data` (torchvision's habit), or downloaded.

    With `allow_generated`, a download that fails is replaced by generated images; nothing else is.
    Raises DataError for everything missing, incomplete or damaged.
    """
    errors = []
    for place in [cache_folder(), Path("data")] if directory is None else [directory]:
        for layout, path in _sources(place):
            try:
                return _from_records(*read(layout, path), str(path))
            except DataError as error:
                errors.append(error)
    if errors:
        raise errors[0]
    if directory is not None:
        names = ", ".join(name for layout in LAYOUTS for name in (layout.folder, layout.archive))
        raise DataError(
            f"{directory}: no CIFAR-10 there. The folder must be, or hold, one of {names}. "
            "Correct --data, or leave it out to download the data."
        )
    try:
        archive = download(cache_folder())
    except DownloadError as error:
        if not allow_generated:
            raise
        return replace(_from_records(*_generate(), GENERATED), why_generated=str(error))
    return _from_records(*read(BINARY, archive), str(archive))


def asked_for(parser: argparse.ArgumentParser, directory: Path | None) -> Cifar10:
    """What `load` finds, or generated images; its error is the parser's."""
    try:
        return load(directory, allow_generated=True)
    except DataError as error:
        parser.error(str(error))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sigscale" / "cifar10"


def download(folder: Path) -> Path:
    """Fetch the archive into `folder`: checked, and there whole or not at all."""
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=True)
    remedy = "Try again, or fetch the archive elsewhere and name the folder that holds it with --data DIR."
    try:
        return Path(pooch.retrieve(URL, f"md5:{MD5}", BINARY.archive, folder, downloader=downloader))
    except requests.RequestException as error:
        raise DownloadError(f"{URL}: download failed ({error}). {remedy}") from error
    except ValueError as error:
        raise DataError(f"{URL}: not the official archive ({error}). {remedy}") from error
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write there ({error.strerror or error}), and the download needs 170 MB. Make "
            "room, set XDG_CACHE_HOME to another folder, or name one that has CIFAR-10 with --data DIR."
        ) from error


def _sources(place: Path) -> Iterator[tuple[Layout, Path]]:
    """Everything at `place` that could be the data set: its layout, and its folder or archive."""
    for layout in LAYOUTS:
        if any((place / file).exists() for file in layout.files):
            yield layout, place
        if place.name == layout.archive and place.is_file():
            yield layout, place
        for inner in (place / layout.folder, place / layout.archive):
            if inner.exists():
                yield layout, inner


def read(layout: Layout, path: Path) -> tuple[Records, Records]:
    """The training and the test records in `path`, a folder or an archive; raises DataError."""
    try:
        files = dict(_folder_files(layout, path) if path.is_dir() else _archive_files(layout, path))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{path}: cannot be read, or not a whole .tar.gz archive ({error}). {REPLACE}"
        ) from error
    if missing := [file for file in layout.files if file not in files]:
        raise DataError(f"{path}: {', '.join(missing)} missing, of {', '.join(layout.files)}. {REPLACE}")
    *train, test = [_records(layout, files[file], path / file) for file in layout.files]
    return np.concatenate(train), test


def _folder_files(layout: Layout, folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in layout.files:
        with suppress(FileNotFoundError):
            yield file, (folder / file).read_bytes()


def _archive_files(layout: Layout, archive: Path) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{layout.folder}/{file}": file for file in layout.files}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = wanted.get(member.name.removeprefix("./"))
            if name and (content := tar.extractfile(member)):
                yield name, content.read()


def _records(layout: Layout, content: bytes, path: Path) -> Records:
    try:
        labels, pixels = layout.decode(content)
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path}: {len(content):,} bytes, unreadable ({error}). {REPLACE}") from error
    if pixels.dtype != np.uint8 or pixels.shape != (RECORDS, PIXELS) or labels.shape != (RECORDS,):
        raise DataError(
            f"{path}: labels {labels.shape}, pixels {pixels.dtype} {pixels.shape}; a batch is labels "
            f"({RECORDS},), pixels uint8 ({RECORDS}, {PIXELS}). {REPLACE}"
        )
    if (bad := (labels < 0) | (labels >= CLASSES)).any():
        record = int(bad.argmax())
        rule = f"labels run from 0 to {CLASSES - 1}"
        raise DataError(f"{path}: record {record} has label {labels[record]}; {rule}. {REPLACE}")
    return np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)


def _decode_binary(content: bytes) -> tuple[Array, Array]:
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 0], records[:, 1:]


def _decode_pickle(content: bytes) -> tuple[Array, Array]:
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    return np.asarray(fields["labels"]), np.asarray(fields["data"])


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and built-in containers, and refuses every other name."""

    ALLOWED = re.compile(
        r"numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)"
        r"|numpy\.(ndarray|dtype)|_codecs\.encode"
    )

    def find_class(self, module: str, name: str) -> Any:
        if self.ALLOWED.fullmatch(f"{module}.{name}"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


BINARY = Layout("cifar-10-batches-bin", ".bin", "cifar-10-binary.tar.gz", _decode_binary)
PYTHON = Layout("cifar-10-batches-py", "", "cifar-10-python.tar.gz", _decode_pickle)
LAYOUTS = (BINARY, PYTHON)


def _generate() -> tuple[Records, Records]:
    """16,000 + 2,000 images: a coarse pattern for each class, under noise."""
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
