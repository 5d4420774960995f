"""The download of CIFAR-10."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from examples.cifar10.errors import DataError, DownloadError
from examples.cifar10.files import delete_leftovers, durable, locked

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""As published on https://www.cs.toronto.edu/~kriz/cifar.html; guards against damage, not against attack."""

TIMEOUT_SECONDS = 20


def download(folder: Path, url: str, md5: str) -> Path:
    """Fetch `url` into `folder` and return the file's path; wait for another command that does the same.

    Raises DownloadError when the bytes do not arrive, DataError when they cannot be saved or have another
    checksum; either way nothing is left behind but the folder and its lock.
    """
    target = folder / _name(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True) as held:
            if target.exists():
                return target  # the other command's
            if held:
                delete_leftovers(folder, re.escape(target.name))
            with durable(target) as part:
                found = _fetch(url, part)
                if found != md5:
                    raise DataError(
                        f"{url}: what arrived ({part.stat().st_size:,} bytes) has MD5 {found}, the official "
                        f"archive has {md5}; it was deleted. Try again, or put the archive into {folder} by "
                        "hand."
                    )
    except OSError as error:
        remedy = "Set XDG_CACHE_HOME to a folder that can be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free 170 MB there, set XDG_CACHE_HOME to a folder with room"
        raise DataError(
            f"{folder}: cannot write there ({error.strerror}), and the download needs it. {remedy}, "
            "or name one that has CIFAR-10 with --data DIR."
        ) from error
    return target


def tidy(folder: Path, url: str) -> None:
    """Delete what killed downloads of `url` left in `folder`, unless another one is under way there."""
    with suppress(OSError):
        if any(folder.glob(".*.part")):
            with locked(folder) as held:
                if held:
                    delete_leftovers(folder, re.escape(_name(url)))


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _fetch(url: str, part: Path) -> str:
    """Copy `url` to `part` with a progress bar; return the MD5 of what arrived.

    An OSError is of `part`: those of the network become DownloadErrors.
    """
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with part.open("wb") as out:
        with _network(url):
            response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
        size = response.length
        with response, tqdm(total=size, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            while True:
                with _network(url):
                    chunk = response.read(1 << 20)
                if not chunk:
                    break
                digest.update(chunk)
                received += out.write(chunk)
                bar.update(len(chunk))
    if size and received < size:
        raise DownloadError(
            f"{url}: the connection broke off after {received:,} of {size:,} bytes. Try again, or fetch the "
            "archive elsewhere and name the folder that holds it with --data DIR."
        )
    return digest.hexdigest()


@contextmanager
def _network(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{url}: download failed ({error}). Check the connection and try again, or fetch the archive "
            "elsewhere and name the folder that holds it with --data DIR."
        ) from error
