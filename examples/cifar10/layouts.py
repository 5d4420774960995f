"""The two official layouts of CIFAR-10 as arrays of records, from a folder or straight from the `.tar.gz`.

Archives are read in place: nothing is unpacked, so nothing can be half unpacked or land elsewhere.  The order
of the images may differ from the official one, hence no checksum is asked of data the user brings.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.cifar10.errors import DataError

Records = npt.NDArray[np.uint8]
"""(n, 1 + PIXELS): the label, then the pixels, channel by channel."""

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
RECORDS = 10_000
PIXELS = 3 * 32 * 32
CLASSES = 10
REPLACE = (
    "Replace it by the official one (https://www.cs.toronto.edu/~kriz/cifar.html), "
    "or delete it and start without --data to download the data."
)


@dataclass(frozen=True)
class Layout:
    folder: str
    suffix: str
    archive: str
    decode: Callable[[bytes, str], Records]
    """File content and the name to blame in errors -> (RECORDS, 1 + PIXELS)."""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(batch + self.suffix for batch in (*TRAIN, TEST))


def read(layout: Layout, path: Path) -> tuple[Records, Records]:
    """The training and the test records in `path`, a folder or an archive; raises DataError."""
    files = dict(_folder_files(layout, path) if path.is_dir() else _archive_files(layout, path))
    if missing := [file for file in layout.files if file not in files]:
        raise DataError(
            f"{path}: {', '.join(missing)} missing. CIFAR-10 in this layout is the {len(layout.files)} files "
            f"{', '.join(layout.files)}. {REPLACE}"
        )
    *train, test = [layout.decode(files[file], str(path / file)) for file in layout.files]
    return np.concatenate(train), test


def _folder_files(layout: Layout, folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in layout.files:
        try:
            yield file, (folder / file).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(
                f"{folder / file}: cannot be read ({error.strerror}). Make it readable."
            ) from error


def _archive_files(layout: Layout, archive: Path) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{layout.folder}/{file}": file for file in layout.files}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in wanted and (content := tar.extractfile(member)):
                    yield wanted[member.name], content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{archive}: not a whole .tar.gz archive ({error}; {archive.stat().st_size:,} bytes). {REPLACE}"
        ) from error


def _decode_binary(content: bytes, name: str) -> Records:
    size = RECORDS * (1 + PIXELS)
    if len(content) != size:
        raise DataError(
            f"{name}: {len(content):,} bytes; a batch is {RECORDS:,} records x {1 + PIXELS:,} bytes "
            f"= {size:,} bytes. {REPLACE}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(RECORDS, 1 + PIXELS)
    _check_labels(records[:, 0], name)
    return records


def _decode_pickle(content: bytes, name: str) -> Records:
    rule = f"a batch is a pickled dict of data, uint8 ({RECORDS:,}, {PIXELS:,}), and {RECORDS:,} labels"
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{name}: {len(content):,} bytes, unreadable ({error}); {rule}. {REPLACE}") from error
    try:
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = np.asarray(fields["data"]), np.asarray(fields["labels"])
    except (AttributeError, KeyError, ValueError) as error:
        raise DataError(f"{name}: data and labels not found; {rule}. {REPLACE}") from error
    whole = pixels.shape == (RECORDS, PIXELS) and labels.shape == (RECORDS,)
    if not whole or pixels.dtype != np.uint8 or labels.dtype.kind != "i":
        raise DataError(
            f"{name}: data is {pixels.dtype} {pixels.shape}, labels are {labels.dtype} {labels.shape}; "
            f"{rule}. {REPLACE}"
        )
    _check_labels(labels, name)
    return np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)


def _check_labels(labels: npt.NDArray[Any], name: str) -> None:
    bad = (labels < 0) | (labels >= CLASSES)
    if bad.any():
        record = int(bad.argmax())
        raise DataError(
            f"{name}: record {record} has label {labels[record]}; "
            f"labels run from 0 to {CLASSES - 1}. {REPLACE}"
        )


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and built-in containers, and refuses every other name: nothing foreign runs."""

    ALLOWED = frozenset(
        {
            *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
            *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
            "numpy.ndarray",
            "numpy.dtype",
            "_codecs.encode",
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


BINARY = Layout("cifar-10-batches-bin", ".bin", "cifar-10-binary.tar.gz", _decode_binary)
PYTHON = Layout("cifar-10-batches-py", "", "cifar-10-python.tar.gz", _decode_pickle)
LAYOUTS = (BINARY, PYTHON)
