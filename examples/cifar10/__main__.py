"""`python -m examples.cifar10`: the paper's figures, from the data to the pictures and the verdicts."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

try:
    import matplotlib  # noqa: F401  (needed only at the end of a long run)
    import pandas  # noqa: F401
    import pooch  # noqa: F401
    import scipy  # noqa: F401
    import torch
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    sys.exit(f'error: the example needs {missing.name}, which is not installed: pip install -e ".[examples]"')

from examples.cifar10 import data, networks, pipelines, report, runtime, store, train
from examples.cifar10.data import Cifar10
from examples.cifar10.pipelines import ALSO, FIGURES, Figure
from examples.cifar10.runtime import CommandError, Processes
from examples.cifar10.store import Folder, Job, device_name
from examples.cifar10.train import Run, Settings
from examples.common import count, positive

QUICK = Settings(epochs=12, lr=0.015, steps=400)
"""Adam moves a weight by about `lr` a step, and the penalty must shrink weights of 10 before anything is
learned.  Fifteen times the paper's rate shows in 4,800 steps what the paper's rate shows in some 20,000."""
QUICK_SEEDS = (0, 1, 2, 3)
"""For each of them the remedy of Figure 1 shows that early."""
EPOCHS_PER_SAVE = {"cpu": 1, "cuda": 5}
"""A GPU trains an epoch in about the time that saving takes."""
SIDE_BY_SIDE = {"cpu": 1, "cuda": 4}
"""How many pipelines are trained at a time.  Steps of such small networks leave most of a GPU idle."""
TRIAL_STEPS = 5
"""Steps of each pipeline that are timed to estimate how long a run takes."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        runtime.keep_freed_memory()
        torch.set_flush_denormal(True)  # vanishing gradients: an epoch took 590 s instead of 31
        with runtime.processes(arguments.device) as all_:
            experiment(arguments, all_)
    except (CommandError, MemoryError, OSError, RuntimeError) as error:
        words = str(error).lower()  # PyTorch's own exception for memory covers GPUs only
        memory = (
            isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
        )
        if isinstance(error, RuntimeError) and not memory:
            raise
        what = f"out of memory on {arguments.device} ({str(error).partition(chr(10))[0]})"
        print(f"error: {what if memory else error}", file=sys.stderr)
        if memory:
            fewer = max(1, min(arguments.together, len(arguments.seeds)) // 2)
            print(f"Lower --together, say to {fewer}, or --batch, and go on with --resume.", file=sys.stderr)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            print("Make room on that disk and go on with --resume; no file is half written.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = shlex.join([*(word for word in argv if word != "--resume"), "--resume"])
        print(f"\ninterrupted; to go on: python -m examples.cifar10 {again}", file=sys.stderr)
        return 130
    return 0


def experiment(arguments: argparse.Namespace, all_: Processes) -> None:
    settings, figures = settings_of(arguments), figures_of(arguments)
    folder = Folder(arguments.out or Path("runs", "cifar10-quick" if arguments.quick else "cifar10"))
    if all_.main:
        folder.check(asdict(settings), resume=arguments.resume)
    with all_.main_process_first():  # it may have to download the data
        cifar = data.load(arguments.data, allow_generated=arguments.quick)
    _check_batch(settings, cifar)
    what = {**asdict(settings), "data_sha256": cifar.sha256, "data_generated": cifar.generated}
    with ExitStack() as stack:
        jobs: list[list[Job]] = []
        if all_.main:
            folder.check(what, resume=arguments.resume)
            merged = folder.to_merge(arguments.merge, what)
            folder.begin(what)
            stack.enter_context(folder.alone())
            folder.collect(what, merged)
            _announce(arguments, settings, cifar, figures)
            jobs = store.plan(
                pipelines.unique(figures),
                arguments.seeds,
                folder.finished(settings.epochs),
                folder.begun,
                together=arguments.together,
                world=all_.world,
            )
        mine = all_.broadcast(jobs)[all_.rank]
        _train(mine, arguments.device, settings, cifar, folder, quiet=not all_.main)
        all_.wait()
        if all_.main:
            folder.collect(what)
            report.write(folder, figures, what)


def _train(
    jobs: Sequence[Job],
    device: torch.device,
    settings: Settings,
    cifar: Cifar10,
    folder: Folder,
    *,
    quiet: bool,
) -> None:
    """One job after the other, on a GPU some side by side; the state is saved every few epochs."""
    cifar = cifar.to(device)
    steps, beside = settings.steps_per_epoch(len(cifar.train.labels)), SIDE_BY_SIDE[device.type]
    total = sum(len(seeds) for _, seeds in jobs) * settings.epochs * steps
    interval = 1 if sys.stderr.isatty() else 60
    with tqdm(total=total, unit="step", mininterval=interval, disable=quiet, smoothing=0.01) as bar:
        for first in range(0, len(jobs), beside):
            runs = [Run(*job, settings, cifar, device) for job in jobs[first : first + beside]]
            for run in runs:
                folder.restore(run)
                if run.not_native and not quiet:
                    why = f"in PyTorch, which is slower ({run.not_native})"
                    bar.write(f"{_what(run)}: {why}", file=sys.stdout)
                bar.update(run.epoch * steps * len(run.seeds))
            while training := [run for run in runs if not run.done]:
                doing = "; ".join(f"{_what(run)}, epoch {run.epoch + 1}" for run in training)
                bar.set_description(doing, refresh=False)
                train.train_epoch(training, partial(bar.update, sum(len(run.seeds) for run in training)))
                for run in training:
                    if run.done or run.epoch % EPOCHS_PER_SAVE[device.type] == 0:
                        folder.save(run)
            for run in runs:
                if not quiet:
                    accuracy = run.column("test_accuracy")[-1].mean()
                    bar.write(f"{_what(run)}: test accuracy {accuracy:.2%}", file=sys.stdout)
                run.monitor.close()
            del run, runs, training
            gc.collect()  # their graphs, before the next runs take as much memory


def _what(run: Run) -> str:
    return f"{run.pipeline.label}, seeds {store.seed_ranges(run.seeds)}"


def _announce(
    arguments: argparse.Namespace, settings: Settings, cifar: Cifar10, figures: Sequence[Figure]
) -> None:
    if cifar.generated:
        print(f"{report.GENERATED}.\nNo data was found and none could be downloaded. Real data: --data DIR.")
        print(f"({cifar.why_generated})")
    print(f"data: {cifar.source}; {len(cifar.train.labels):,} + {len(cifar.test.labels):,} images")
    what = ", ".join(figure.name for figure in figures)
    print(f"on {device_name(arguments.device)}: {what}; {report.describe(asdict(settings))}", flush=True)
    if arguments.quick:
        minutes = _estimate(arguments, settings, cifar, figures) / 60
        print(f"This takes about {max(1, round(minutes))} min.", flush=True)


def _estimate(
    arguments: argparse.Namespace, settings: Settings, cifar: Cifar10, figures: Sequence[Figure]
) -> float:
    """Seconds to train all that was asked for, from a few steps of each pipeline and one evaluation."""
    cifar, seconds = cifar.to(arguments.device), 0.0
    for pipeline in pipelines.unique(figures):
        steps = settings.steps_per_epoch(len(cifar.train.labels))
        run = Run(pipeline, arguments.seeds[: arguments.together], settings, cifar, arguments.device)
        step, evaluation = run.time(TRIAL_STEPS)
        run.monitor.close()
        groups = len(arguments.seeds) / len(run.seeds)
        seconds += settings.epochs * (steps * step + evaluation) * groups
    return seconds


def _check_batch(settings: Settings, cifar: Cifar10) -> None:
    images = len(cifar.train.labels)
    if settings.batch > images:
        rule = f"a batch cannot have more than the {images:,} training images"
        raise CommandError(f"--batch {settings.batch}: {rule}. The default is {Settings.batch}.")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the defaults that depend on --quick."""
    arguments = parser().parse_args(argv)
    arguments.figure = arguments.figure or ["1" if arguments.quick else "3"]
    arguments.seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else (0,))
    return arguments


def settings_of(arguments: argparse.Namespace) -> Settings:
    base = QUICK if arguments.quick else Settings()
    names = ("epochs", "batch", "lr", "steps", "pixels", "conv", "bias")
    given = {name: getattr(arguments, name) for name in names}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def figures_of(arguments: argparse.Namespace) -> list[Figure]:
    """The figures asked for, in order."""
    chosen = [*FIGURES] if "all" in arguments.figure else [key for key in FIGURES if key in arguments.figure]
    return [*(FIGURES[key] for key in chosen), *(ALSO.values() if arguments.also else ())]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m examples.cifar10",
        usage="%(prog)s [options]",
        description="Train the paper's Figures 1 to 4 on CIFAR-10, draw them, and check the paper's claims.",
        epilog="Without --data, the data is looked for in ~/.cache/sigscale/cifar10 (or XDG_CACHE_HOME) "
        "and in ./data, and otherwise downloaded (162 MB).  Under torchrun, the processes share --out and "
        "divide the seeds.",
        allow_abbrev=False,
    )
    add: Callable[..., Any] = result.add_argument
    add("--figure", type=_figures, metavar="F", help="1 to 4, several such as 1,2, or all (3; --quick: 1)")
    add("--also", action="store_true", help="add our own comparisons: batch norm, other alphas and functions")
    add(
        "--seeds",
        type=store.parse_seeds,
        metavar="N",
        help="how many, or which: 25, or 10-24 (1; --quick: 4)",
    )
    quick = (
        f"at most 3 minutes on two CPU cores: {QUICK.epochs} epochs of {QUICK.steps} steps, --lr {QUICK.lr}"
    )
    add(
        "--quick", action="store_true", help=f"{quick}; generated images if there is neither data nor network"
    )
    folder = {"type": Path, "metavar": "DIR"}
    layouts = "cifar-10-batches-bin, cifar-10-batches-py, or the .tar.gz of either"
    add("--data", **folder, help=f"folder that is or holds {layouts}")
    add("--out", **folder, help="output folder (runs/cifar10; with --quick runs/cifar10-quick)")
    add("--resume", action="store_true", help="go on in --out, or add figures, seeds or epochs to it")
    add("--merge", **folder, nargs="+", default=(), help="first copy these folders' finished runs to --out")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=_device, default=best, metavar="D", help=f"cpu, cuda or cuda:N ({best})")
    add("--together", type=count, default=25, metavar="N", help="train at most N seeds at once (25)")
    add("--epochs", type=count, metavar="N", help=f"passes over the data ({Settings.epochs})")
    add("--batch", type=count, metavar="N", help=f"images in a step ({Settings.batch})")
    add("--steps", type=count, metavar="N", help="at most N steps an epoch (all)")
    add("--lr", type=positive, metavar="F", help=f"Adam's learning rate (the paper's, {Settings.lr})")
    pixels = "from 0 to 1 (unit, the default), 0 to 255 (byte), or with mean 0 and variance 1 (standard)"
    add("--pixels", choices=train.PIXELS, help=pixels)
    conv = "kind of the 3-by-3 convolutions (separable in Table 1, plain in Tables 2 and 3)"
    add("--conv", choices=networks.CONVOLUTIONS, help=conv)
    bias = "biases everywhere or nowhere, zero at the start (in Table 1's dense layers only)"
    add("--bias", action=argparse.BooleanOptionalAction, help=bias)
    return result


def _figures(text: str) -> Sequence[str]:
    keys = text.split(",")
    if unknown := [key for key in keys if key not in (*FIGURES, "all")]:
        rule = f"the paper's figures are {', '.join(FIGURES)}; name one, several such as 1,2, or all"
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: {rule}")
    return keys


def _device(text: str) -> torch.device:
    count = torch.cuda.device_count()
    if text == "cuda" and count:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)
    if text in ("cpu", *(f"cuda:{index}" for index in range(count))):
        return torch.device(text)
    rule = f"must be cpu, or cuda or cuda:N for one of the {count} GPUs PyTorch sees here"
    raise argparse.ArgumentTypeError(f"{text!r}: {rule}; leave --device out for the best there is")


if __name__ == "__main__":
    sys.exit(main())
