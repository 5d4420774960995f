"""The download, and what all files of this example are written with.

A file appears under its name only when it is whole and on the disk.  Whoever writes to a folder that other
commands may use holds its lock, and then deletes what processes that were killed have left in it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from examples.cifar10.errors import DataError, DownloadError
from sigscale.files import atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """`atomic`, and on the disk: after a power failure the file is the old one or the new one, and whole.

    Systems may put a file's name on the disk ahead of its content, and find out only then that there is no
    room.  Errors name `path`, where the system did not say which file it was.
    """
    try:
        with atomic(path) as part:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        _flush_names(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _flush_names(folder: Path) -> None:
    """Put the folder itself on the disk, where the system can: files then survive in the order of writing."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the folder's lock, which the system frees however its holder ends; its file .lock stays.

    Yields whether there is a lock: Windows has none, nor has every file system.  Raises BlockingIOError when
    another process holds it, unless told to `wait`.
    """
    if fcntl is None:
        yield False
        return
    with (folder / ".lock").open("a") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"{folder}: waiting for another command at work there", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            held = False
        yield held


def delete_leftovers(folder: Path, names: str) -> None:
    """Delete the temporary files of `atomic` whose processes ended before they could.

    Only for who holds the folder's lock and is yet to write there.  What cannot be deleted does no harm.

    Args:
        names: a regular expression of the names the files were to have; all others are left alone.
    """
    for path in folder.glob(".*.part"):
        match = re.fullmatch(rf"\.(?:{names})\.(?P<process>[1-9][0-9]{{0,8}})\.part", path.name)
        if match and path.is_file() and not path.is_symlink() and not _lives(int(match["process"])):
            with suppress(OSError):
                path.unlink()


def _lives(process: int) -> bool:
    """Whether a process of this machine has that number, other than this one, which is yet to write."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
