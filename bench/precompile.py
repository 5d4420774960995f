"""A cache of compiled kernels for an H100 or H200, made where there is no GPU, for where there is one.

    python -m bench.precompile FILE             compile on every core, pack what was compiled into FILE
    python -m bench.precompile FILE --unpack    on the GPU's machine; compiles if FILE is missing or useless

FILE is of use to the Triton that made it, whose key it carries, and in the same folder: Triton notes absolute
paths. So the folder is the same everywhere, unless TRITON_CACHE_DIR says otherwise.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(os.environ.get("TRITON_CACHE_DIR", "/var/tmp/sigscale-triton"))
ENVIRONMENT = {
    "TRITON_CACHE_DIR": str(FOLDER),
    "TRITON_DISABLE_LINE_INFO": "1",
    "TRITON_STORE_BINARY_ONLY": "1",
}
KEY = FOLDER / "key"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ELEMENTS = 4800


class Sm90:
    """Stands for Triton's driver: compiles, launches nothing."""

    launcher_cls = None

    def __getattr__(self, name: str) -> Any:
        from triton.backends.compiler import GPUTarget

        return lambda *arguments: GPUTarget("cuda", 90, 32) if name == "get_current_target" else 0


def triton_key() -> str:
    import triton

    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        from triton.compiler.compiler import triton_key
    return f"triton {triton.__version__} {hashlib.sha256(triton_key().encode()).hexdigest()}"


def compile_for(function: str, dtype: torch.dtype) -> int:
    """Whatever kernels a function and the quantiles of its gradients take in a dtype; how many."""
    import triton

    import sigscale
    from sigscale.kernels import device, launcher, select

    made = set()

    def compiled(kernel: Any, what: Any, grid: int, tensors: Any, *arguments: Any, num_warps: int) -> None:
        options = {"num_warps": num_warps, **launcher.OPTIONS}
        made.add(kernel.run(*tensors, *arguments, grid=(grid,), warmup=True, **options).hash)

    triton.runtime.driver.set_active(Sm90())
    vars(device).update(takes_kernel=lambda x: True, has_shared_counters=lambda device: True)
    launcher.launch = compiled
    f, x = getattr(sigscale, function), torch.zeros(ELEMENTS, dtype=dtype, requires_grad=True)
    alphas = torch.full((8,), 2.0, requires_grad=True)
    for m in (3, 5):
        sketch = sigscale.QuantileSketch(m)
        f(x, grad_sketch=sketch).sum().backward()
        f(x, alpha=alphas[0], grad_sketch=sketch).sum().backward()
        sketch.update(x.detach()).quantile(0.5)
    for save, alpha in (("input", 2.0), ("output", 2.0), (None, alphas[0])):
        f(x, alpha=alpha, save=save).sum().backward()
    f(x.reshape(-1, 8, 60), alpha=alphas).sum().backward()
    for size in (select.GATHERED, 0):  # as for small tensors and large ones
        select.GATHERED = size
        sigscale.quantile(x.detach(), [0.05, 0.25, 0.5, 0.75, 0.95])
    sigscale.foreach_quantile([x.detach()] * 4, [0.5])
    return len(made)


def compile_all(count: int | None) -> int:
    """The first pairs of function and dtype, or all, on every core; how many kernels."""
    from sigscale import FUNCTIONS

    cases = [*product(FUNCTIONS, DTYPES)][:count]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return sum(pool.map(compile_for, *zip(*cases, strict=True)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the archive, such as .stage/cache.txz")
    parser.add_argument("--unpack", action="store_true", help="take the archive in")
    parser.add_argument("--cases", type=int, help="compile for so many pairs of function and dtype only")
    given = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if given.unpack and given.file.exists():
        with tarfile.open(given.file) as archive:
            archive.extractall(FOLDER, filter="data")
        if KEY.read_text() == triton_key():
            print(f"unpacked {given.file}")
            return 0
        print(f"{given.file} is of {KEY.read_text()}, not {triton_key()}: compiling")
    print(f"{compile_all(given.cases)} kernels in {FOLDER}")
    KEY.write_text(triton_key())
    if not given.unpack:
        with tarfile.open(given.file, "w:xz") as archive:
            archive.add(FOLDER, ".", filter=lambda of: None if of.name.endswith(".source") else of)
    return 0


if __name__ == "__main__":
    sys.exit(main())
