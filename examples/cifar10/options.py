"""The command line: what may be asked for, and the settings it amounts to."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from examples.cifar10 import networks, train
from examples.cifar10.train import Settings

QUICK = Settings(epochs=12, lr=0.02, steps=400)
"""Adam moves a weight by about `lr` a step, and the penalty must bring weights of 10 down before anything is
learned.  Twenty times the paper's rate shows in 4,800 steps what its own shows in some 20,000."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m examples.cifar10",
        usage="%(prog)s [options]",
        description="Train the four pipelines of the paper's Figure 3 on CIFAR-10; draw it, print a table, "
        "and keep every number as JSON and CSV.",
        epilog="Without --data the data is looked for in ~/.cache/sigscale/cifar10 (XDG_CACHE_HOME is "
        "heeded) and in ./data, and else downloaded (162 MB).",
        allow_abbrev=False,
    )
    _add_what_to_do(result)
    _add_settings(result)
    return result


def settings(arguments: argparse.Namespace) -> Settings:
    base = QUICK if arguments.quick else Settings()
    names = ("epochs", "batch", "lr", "pixels", "conv", "bias")
    given = {name: getattr(arguments, name) for name in names}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def out_folder(arguments: argparse.Namespace) -> Path:
    default = Path("runs") / ("cifar10-quick" if arguments.quick else "cifar10")
    return arguments.out or default


def _add_what_to_do(to: argparse.ArgumentParser) -> None:
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
        "--quick",
        action="store_true",
        help=f"a trial of about two minutes on two CPU cores: {QUICK.epochs} epochs of {QUICK.steps} steps, "
        f"learning rate {QUICK.lr}; with made-up images where there is neither data nor network",
    )
    to.add_argument("--resume", action="store_true", help="go on after the last complete epoch in --out")
    to.add_argument(
        "--device",
        type=_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        metavar="D",
        help="cpu, cuda or cuda:N (the GPU where there is one)",
    )


def _add_settings(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="runs of each pipeline (1; the paper has 25)"
    )
    to.add_argument("--epochs", type=_count, metavar="N", help=f"passes over the data ({Settings.epochs})")
    to.add_argument("--batch", type=_count, metavar="N", help=f"images in a step ({Settings.batch})")
    to.add_argument(
        "--lr", type=_rate, metavar="F", help=f"Adam's learning rate ({Settings.lr}, the paper's)"
    )
    to.add_argument(
        "--pixels",
        choices=train.PIXELS,
        help="from 0 to 1 (unit, the default), 0 to 255 (byte), or with mean 0 and variance 1 (standard)",
    )
    to.add_argument(
        "--conv", choices=networks.CONVOLUTIONS, help="how to read the paper's 3-by-3 convolutions (plain)"
    )
    to.add_argument("--bias", action="store_true", default=None, help="biases, zero at the start (none)")


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
    if text in ("cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))):
        return torch.device(text)
    raise argparse.ArgumentTypeError(
        f"{text!r}: must be cpu, or cuda or cuda:N for one of the {count} GPUs PyTorch sees here; "
        "leave --device out for the best there is"
    )
