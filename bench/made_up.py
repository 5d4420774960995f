"""`python bench/made_up.py DIR`: made-up images in the format of CIFAR-10, to try commands on.

In each file 64 images of noise; the others are black, and take no room on the disk.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
IMAGES, NOISE, PIXELS, CLASSES = 10_000, 64, 3072, 10


def write(directory: Path) -> None:
    numbers = random.Random(0)
    folder = directory / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        records = (bytes([numbers.randrange(CLASSES)]) + numbers.randbytes(PIXELS) for _ in range(NOISE))
        with (folder / name).open("wb") as file:
            file.write(b"".join(records))
            file.truncate(IMAGES * (1 + PIXELS))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
