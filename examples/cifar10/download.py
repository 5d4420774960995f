"""One download: the file appears under its name only when it is whole and has the right checksum."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from pathlib import Path

from tqdm import tqdm

from examples.cifar10.errors import DataError, DownloadError
from sigscale.files import atomic

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""As published on https://www.cs.toronto.edu/~kriz/cifar.html; guards against damage, not against attack."""

TIMEOUT_SECONDS = 20


def download(folder: Path, url: str, md5: str) -> Path:
    """Fetch `url` into `folder` and return the file's path.

    Raises DownloadError when the bytes do not arrive and DataError when they have another checksum; either
    way nothing is left behind but the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / url.rsplit("/", 1)[-1]) as part:
            part.touch()
            found = _fetch(url, part)
            if found != md5:
                raise DataError(
                    f"{url}: what arrived ({part.stat().st_size:,} bytes) has MD5 {found}, the official "
                    f"archive has {md5}; it was deleted. Try again, or put the archive into {folder} by hand."
                )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write there ({error.strerror}), and the download needs it. Set XDG_CACHE_HOME "
            "to a folder that can be written, or name one that has CIFAR-10 with --data DIR."
        ) from error
    return folder / url.rsplit("/", 1)[-1]


def _fetch(url: str, part: Path) -> str:
    """Copy `url` to `part` with a progress bar; return the MD5 of what arrived."""
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as out:
            size = int(response.headers["Content-Length"] or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    received += out.write(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{url}: download failed ({error}). Check the connection and try again, or fetch the archive "
            "elsewhere and name the folder that holds it with --data DIR."
        ) from error
    if received < size:
        raise DownloadError(
            f"{url}: the connection broke off after {received:,} of {size:,} bytes. Try again."
        )
    return digest.hexdigest()
