"""The command line: what may be asked for, and the settings it amounts to."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.cifar10 import networks, spans, train
from examples.cifar10.beyond import ALSO
from examples.cifar10.pipelines import FIGURES, Figure
from examples.cifar10.train import Settings

QUICK = Settings(epochs=12, lr=0.015, steps=400)
"""Adam moves a weight by about `lr` a step, and the penalty must bring weights of 10 down before anything is
learned.  Fifteen times the paper's rate shows in 4,800 steps what its own shows in some 20,000."""
DEFAULTS: dict[str, Any] = {"figure": ["3"], "seeds": (0,)}
QUICK_DEFAULTS: dict[str, Any] = {"figure": ["1"], "seeds": (0, 1, 2, 3)}
"""Of the paper's figures, Figure 1 is the one whose remedy shows that early, and in each of these seeds."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m examples.cifar10",
        usage="%(prog)s [options]",
        description="Train what the paper's Figures 1 to 4 compare on CIFAR-10, all seeds of a pipeline at "
        "once; draw them, check the paper's claims, and keep every number.",
        epilog="Without --data the data is looked for in ~/.cache/sigscale/cifar10 (XDG_CACHE_HOME is "
        "heeded) and in ./data, and else downloaded (162 MB).  Under torchrun the seeds are divided over the "
        "processes, which share --out.",
        allow_abbrev=False,
    )
    _add_what_to_do(result)
    _add_where(result)
    _add_settings(result)
    return result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the defaults that depend on --quick."""
    arguments = parser().parse_args(argv)
    defaults = QUICK_DEFAULTS if arguments.quick else DEFAULTS
    arguments.figure = arguments.figure or defaults["figure"]
    arguments.seeds = arguments.seeds or defaults["seeds"]
    return arguments


def settings(arguments: argparse.Namespace) -> Settings:
    base = QUICK if arguments.quick else Settings()
    names = ("epochs", "batch", "lr", "steps", "pixels", "conv", "bias")
    given = {name: getattr(arguments, name) for name in names}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def figures(arguments: argparse.Namespace) -> list[Figure]:
    """Those asked for, in order."""
    chosen = [*FIGURES] if "all" in arguments.figure else [key for key in FIGURES if key in arguments.figure]
    return [*(FIGURES[key] for key in chosen), *(ALSO.values() if arguments.also else ())]


def out_folder(arguments: argparse.Namespace) -> Path:
    default = Path("runs") / ("cifar10-quick" if arguments.quick else "cifar10")
    return arguments.out or default


def _add_what_to_do(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--figure",
        type=_figures,
        metavar="F",
        help=f"{', '.join(FIGURES)}, several of them such as 1,2, or all (default: 3; with --quick 1)",
    )
    to.add_argument(
        "--also",
        action="store_true",
        help="also run our comparisons beyond the paper: batch normalization, other functions and alphas, "
        "an L1 penalty, naive scaling, bfloat16",
    )
    to.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N",
        help="how many, or which: 25, or 10-24 to add to what --out has (default: 1, with --quick 4; the "
        "paper has 25)",
    )
    to.add_argument(
        "--quick",
        action="store_true",
        help=f"a trial of a few minutes on two CPU cores: {QUICK.epochs} epochs of {QUICK.steps} steps, "
        f"learning rate {QUICK.lr}; with made-up images where there is neither data nor network",
    )


def _add_where(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder that is or holds cifar-10-batches-bin, cifar-10-batches-py, or the .tar.gz of either",
    )
    to.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder (runs/cifar10; with --quick runs/cifar10-quick)",
    )
    to.add_argument(
        "--resume", action="store_true", help="go on in --out after the last complete epoch, or add to it"
    )
    to.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        default=(),
        metavar="DIR",
        help="first copy the finished runs of these output folders, of other sittings or machines, to --out",
    )
    to.add_argument(
        "--device",
        type=_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        metavar="D",
        help="cpu, cuda or cuda:N (the GPU where there is one; under torchrun one for each process)",
    )
    to.add_argument(
        "--together",
        type=_count,
        default=25,
        metavar="N",
        help="at most N seeds are trained at once (default: 25); fewer take less memory",
    )


def _add_settings(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--epochs", type=_count, metavar="N", help=f"passes over the data (default: {Settings.epochs})"
    )
    to.add_argument("--batch", type=_count, metavar="N", help=f"images in a step (default: {Settings.batch})")
    to.add_argument("--steps", type=_count, metavar="N", help="at most N steps an epoch (default: all)")
    to.add_argument(
        "--lr", type=_rate, metavar="F", help=f"Adam's learning rate ({Settings.lr}, the paper's)"
    )
    to.add_argument(
        "--pixels",
        choices=train.PIXELS,
        help="from 0 to 1 (unit, the default), 0 to 255 (byte), or with mean 0 and variance 1 (standard)",
    )
    to.add_argument(
        "--conv",
        choices=networks.CONVOLUTIONS,
        help="how to read all 3-by-3 convolutions (separable in Table 1, plain in Tables 2 and 3)",
    )
    to.add_argument(
        "--bias",
        action=argparse.BooleanOptionalAction,
        help="biases everywhere or nowhere, zero at the start (only in dense layers of Table 1)",
    )


def _figures(text: str) -> Sequence[str]:
    keys = text.split(",")
    if unknown := [key for key in keys if key not in (*FIGURES, "all")]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r}: the paper's figures are {', '.join(FIGURES)}; "
            "name one, several such as 1,2, or all"
        )
    return keys


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return spans.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 on, such as 25")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a positive number, such as {Settings.lr}")
    return rate


def _device(text: str) -> torch.device:
    count = torch.cuda.device_count()
    if text == "cuda" and count:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)
    if text in ("cpu", *(f"cuda:{index}" for index in range(count))):
        return torch.device(text)
    raise argparse.ArgumentTypeError(
        f"{text!r}: must be cpu, or cuda or cuda:N for one of the {count} GPUs PyTorch sees here; "
        "leave --device out for the best there is"
    )
