"""What all files of this example are written with.

A file appears under its name only when it is whole and on the disk.  Whoever writes to a folder that other
commands may use holds its lock, and then deletes what processes that were killed have left in it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sigscale._files import atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
