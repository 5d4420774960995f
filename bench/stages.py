"""The stages of `make evidence`: what each runs, needs, and is a measurement of.

    gpu-tests   every test that needs a GPU
    kernels     the benchmarks of the activations and of all that no other stage has
    quantiles   the benchmarks of sketches, exact quantiles and monitors
    table4      the benchmarks of whole training steps
    figures     the paper's figures, by the CIFAR-10 example
    sanitize    a selection of the tests, on small tensors, under each tool of compute-sanitizer

Where a stage was killed, gpu-tests and the benchmarks go on after the last test that passed, sanitize after
the last tool, figures after the last epoch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from codehash import ROOT

QUANTILES = ("test_quantiles", "test_backward_sketch", "test_monitor")
TABLE4 = ("test_table4", "test_seeds")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FINDINGS = 99  # compute-sanitizer's exit code where it found something

# Small tensors through every family of kernels.  None captures a graph: tensors get memory of their own
# (PYTORCH_NO_CUDA_MEMORY_CACHING), so that a read beyond a tensor's end is seen, which a capture cannot have.
SANITIZED = (
    "tests/activations/test_layout.py::test_around_a_block",  # pointwise: whole blocks, tails, every dtype
    "tests/activations/test_layout.py::test_any_view",  # pointwise, of every function, unaligned and strided
    "tests/activations/test_learned.py::test_counted",  # backward with alpha's gradient and a sketch
    "tests/activations/test_learned.py::test_only_what_is_asked_for",
    "tests/quantiles/test_grad_sketch.py::test_any_layout",  # backward that counts
    "tests/quantiles/test_sketch_state.py::test_one_sketch_for_many_tensors_is_the_merged_one",
    "tests/quantiles/test_sketch_errors.py::test_shapes_of_results",  # reading a sketch
    "tests/quantiles/test_quantile.py::test_selection_from_many",  # exact selection, every digit
    "tests/quantiles/test_quantile.py::test_a_list_of_tensors",
    "tests/kernels/test_multi_tensor.py::test_counts",  # many tensors in one launch
    "tests/kernels/test_multi_tensor.py::test_summaries",
    "tests/kernels/test_penalty_kernel.py::test_l2_is_what_pytorch_adds",
    "tests/kernels/test_penalty_kernel.py::test_small_factors",
    "tests/examples/test_cifar10_convolution.py::test_value_and_gradients",
)
SANITIZED_QUICK = SANITIZED[:1]
QUICK = ("--exponents", "10", "--seconds", "0.01", "--dtypes", "float32")
QUICK_FIGURES = ("--quick", "--figure", "3", "--seeds", "1", "--epochs", "1", "--steps", "2")


@dataclass(frozen=True)
class Step:
    """`whole` where nothing of an attempt that did not end counts."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    kept: Path | None = None  # by the plugin `resumed`
    whole: bool = False


@dataclass(frozen=True)
class Stage:
    """`kind` says what its results are; `starts`, the files whose code (see `codehash`) it depends on."""

    name: str
    kind: str
    steps: tuple[Step, ...]
    starts: tuple[str, ...]
    skip: str = ""  # why it is not run


@dataclass(frozen=True)
class Options:
    folder: Path
    gpu: bool
    quick: bool = False
    data: Path | None = None

    def work(self, stage: str) -> Path:
        """For what a killed stage goes on from; not committed."""
        return self.folder / stage / "work"


def stages(options: Options) -> list[Stage]:
    return [
        _gpu_tests(options),
        _benchmarks(options, "kernels", _others()),
        _benchmarks(options, "quantiles", QUANTILES),
        _benchmarks(options, "table4", TABLE4),
        _figures(options),
        _sanitize(options),
    ]


NAMES = ("gpu-tests", "kernels", "quantiles", "table4", "figures", "sanitize")


def _gpu_tests(options: Options) -> Stage:
    chosen = SANITIZED_QUICK if options.quick else ("tests",)
    step = _pytest(options, "gpu-tests", "gpu-tests", (*chosen, "-m", "gpu"))
    return Stage("gpu-tests", "tests", (step,), _tests(), "" if options.gpu else "needs a GPU")


def _sanitize(options: Options) -> Stage:
    chosen = SANITIZED_QUICK if options.quick else SANITIZED
    tool = shutil.which("compute-sanitizer")
    steps = []
    for name in TOOLS:
        under = (tool or "compute-sanitizer", "--tool", name, "--error-exitcode", str(FINDINGS))
        step = _pytest(options, "sanitize", name, (*chosen, "-m", "gpu"))
        env = {**step.env, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        steps.append(replace(step, command=(*under, *step.command), env=env, whole=True))
    skip = "" if tool else "compute-sanitizer is not installed"
    return Stage("sanitize", "tests", tuple(steps), _tests(), skip if options.gpu else "needs a GPU")


def _benchmarks(options: Options, name: str, modules: tuple[str, ...]) -> Stage:
    files = tuple(f"bench/{module}.py" for module in modules if (ROOT / f"bench/{module}.py").exists())
    missing = f"bench/{modules[0]}.py is not there" if f"bench/{modules[0]}.py" not in files else ""
    data = ("--data", str(options.data)) if options.data and modules == TABLE4 else ()
    arguments = (*files, "--benchmark-only", *data, *(QUICK if options.quick else ()))
    step = _pytest(options, name, name, arguments)
    return Stage(name, "benchmarks", (step,), files, missing)


def _figures(options: Options) -> Stage:
    work = options.work("figures")
    data = options.data or (work / "made-up" if options.quick else None)
    what = QUICK_FIGURES if options.quick else ("--figure", "all", "--seeds", "25")
    where = (*(("--data", str(data)) if data else ()), "--out", str(work / "run"), "--resume")
    steps = [Step("figures", (sys.executable, "-m", "examples.cifar10", *what, *where))]
    if data != options.data:
        steps.insert(0, Step("data", (sys.executable, "bench/made_up.py", str(data))))
    starts = ("bench/made_up.py", "examples/cifar10/__main__.py")
    return Stage("figures", "figures", tuple(steps), starts[data == options.data :])


def _pytest(options: Options, stage: str, name: str, arguments: tuple[str, ...]) -> Step:
    """A run that can be gone on with; those of a stage keep their outcomes each in a file of its own."""
    kept = options.work(stage) / f"{name}.jsonl"
    plugin = ("-p", "resumed", "--resumed", str(kept), "-p", "no:cacheprovider")
    command = (sys.executable, "-m", "pytest", *plugin, *arguments, "-v")
    search = os.pathsep.join(filter(None, [str(ROOT / "bench"), os.environ.get("PYTHONPATH")]))
    return Step(name, command, {"PYTHONPATH": search}, kept)


def _tests() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")))


def _others() -> tuple[str, ...]:
    """Benchmarks that belong to no other stage."""
    found = sorted(path.stem for path in (ROOT / "bench").glob("test_*.py"))
    return tuple(name for name in found if name not in (*QUANTILES, *TABLE4))
