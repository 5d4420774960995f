"""`python -m examples.cifar10`: the paper's figures, from the data to the pictures and the verdicts."""

from __future__ import annotations

import argparse
import errno
import gc
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.cifar10 import beyond, data, memory, options, pipelines, processes, results, spans
from examples.cifar10.data import Cifar10
from examples.cifar10.errors import CommandError
from examples.cifar10.folder import Folder, device_name
from examples.cifar10.pipelines import Figure
from examples.cifar10.plan import Job, plan
from examples.cifar10.processes import Processes
from examples.cifar10.train import Run, Settings

GENERATED_WARNING = "GENERATED IMAGES, NOT CIFAR-10: these accuracies mean nothing"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = options.parse(argv)
    try:
        memory.keep()
        with memory.subnormal_numbers_flushed(), processes.together(arguments.device) as all_:
            _experiment(arguments, all_)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: out of memory on {arguments.device} ({_first_line(error)})", file=sys.stderr)
        fewer = max(1, min(arguments.together, len(arguments.seeds)) // 2)
        print(f"Lower --together, say to {fewer}, or --batch, and go on with --resume.", file=sys.stderr)
        return 2
    except (CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print("Make room on that disk and go on with --resume; no file is half written.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = shlex.join([*(word for word in argv if word != "--resume"), "--resume"])
        print(f"\ninterrupted; to go on: python -m examples.cifar10 {again}", file=sys.stderr)
        return 130
    return 0


def _experiment(arguments: argparse.Namespace, all_: Processes) -> None:
    settings, figures = options.settings(arguments), options.figures(arguments)
    folder = Folder(options.out_folder(arguments))
    if all_.first:
        folder.check(asdict(settings), resume=arguments.resume)
    with all_.first_alone():  # which may have to download it
        cifar = data.load(arguments.data, allow_generated=arguments.quick)
    _check_batch(settings, cifar)
    experiment: dict[str, Any] = {
        **asdict(settings),
        "data_sha256": cifar.sha256,
        "data_generated": cifar.generated,
    }
    with ExitStack() as stack:
        jobs: list[list[Job]] = []
        if all_.first:
            folder.check(experiment, resume=arguments.resume)
            copies = folder.copies(arguments.merge, experiment)
            folder.begin(experiment)
            stack.enter_context(folder.alone())
            folder.copy(copies)
            _announce(arguments, settings, cifar, figures)
            jobs = _plan(arguments, figures, folder, all_.world)
        mine = all_.told(jobs)[all_.rank]
        _train(mine, arguments.device, settings, cifar, folder, experiment, quiet=not all_.first)
        all_.wait()
        if all_.first:
            _report(figures, folder, settings, experiment)


def _plan(
    arguments: argparse.Namespace, figures: Sequence[Figure], folder: Folder, world: int
) -> list[list[Job]]:
    return plan(
        pipelines.unique(figures),
        arguments.seeds,
        partial(folder.finished, epochs=options.settings(arguments).epochs),
        folder.begun,
        together=arguments.together,
        world=world,
    )


def _train(
    jobs: Sequence[Job],
    device: torch.device,
    settings: Settings,
    cifar: Cifar10,
    folder: Folder,
    experiment: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    """One job after the other; a checkpoint after each epoch."""
    cifar = cifar.to(device)
    steps = settings.steps_per_epoch(len(cifar.train.labels))
    total = sum(len(job.seeds) for job in jobs) * settings.epochs * steps
    interval = 1 if sys.stderr.isatty() else 60
    with tqdm(total=total, unit="step", mininterval=interval, disable=quiet, smoothing=0.01) as bar:
        for job in jobs:
            run = Run(job.pipeline, job.seeds, settings, cifar, device)
            folder.restore(run)
            if run.not_native and not quiet:
                bar.write(
                    f"{job.pipeline.label}: PyTorch makes the steps ({run.not_native})", file=sys.stdout
                )
            seeds = len(job.seeds)
            what = f"{job.pipeline.label}, seeds {spans.name(job.seeds)}"
            bar.update(run.epoch * steps * seeds)
            while not run.done:
                bar.set_description(f"{what}, epoch {run.epoch + 1}", refresh=False)
                run.train_epoch(lambda seeds=seeds: bar.update(seeds))  # type: ignore[misc]
                folder.save(run)
            folder.finish(run, experiment)
            accuracy = run.column("test_accuracy")[-1].mean()
            if not quiet:
                bar.write(f"{what}: test accuracy {accuracy:.2%}", file=sys.stdout)
            run.monitor.close()
            del run
            gc.collect()  # of its graphs, before the next one takes as much memory


def _report(
    figures: Sequence[Figure], folder: Folder, settings: Settings, experiment: dict[str, Any]
) -> None:
    from examples.cifar10 import figures as pictures
    from examples.cifar10 import heatmaps, report

    warning = GENERATED_WARNING if experiment["data_generated"] else ""
    drawn: dict[str, Path] = {}
    answers: dict[str, str] = {}
    outcomes = folder.outcomes((p.name for p in pipelines.unique(figures)), settings.epochs)
    for figure in figures:
        names = [pipeline.name for pipeline in figure.pipelines]
        found = [outcome for outcome in outcomes if outcome.pipeline in names]
        title = f"{figure.title} on CIFAR-10\n{_describe(settings, found)}"
        drawn[figure.title], _ = pictures.draw(
            figure, found, folder.path / figure.name, title=title, warning=warning
        )
        histories = {p.label: folder.histories(p.name, found) for p in figure.pipelines}
        stem = folder.path / f"{figure.name}-layers"
        layers = f"{figure.title}: layers"
        drawn[layers], _ = heatmaps.draw(histories, settings.epochs, stem, title=title, warning=warning)
        if figure.question:
            answers[figure.title] = beyond.answer(figure, found)
        print("", figure.title, *filter(None, [warning]), results.table(found), sep="\n")
    report.write(folder.path / "report.md", outcomes, experiment, drawn, answers)
    print(f"\nwritten to {folder.path}: report.md, {', '.join(path.name for path in drawn.values())}, runs/")


def _announce(
    arguments: argparse.Namespace, settings: Settings, cifar: Cifar10, figures: Sequence[Figure]
) -> None:
    if cifar.generated:
        print(f"{GENERATED_WARNING}.\nNo data was found and none could be downloaded. Real data: --data DIR.")
        print(f"({cifar.why_generated})")
    print(f"data: {cifar.source}; {len(cifar.train.labels):,} + {len(cifar.test.labels):,} images")
    what = ", ".join(figure.name for figure in figures)
    print(f"on {device_name(arguments.device)}: {what}; {_describe_settings(settings)}", flush=True)


def _check_batch(settings: Settings, cifar: Cifar10) -> None:
    images = len(cifar.train.labels)
    if settings.batch > images:
        raise CommandError(
            f"--batch {settings.batch}: a batch cannot have more than the {images:,} training images. "
            f"Choose at most {images}; the default is {Settings.batch}."
        )


def _describe(settings: Settings, outcomes: Sequence[results.Outcome]) -> str:
    seeds = len({outcome.seed for outcome in outcomes})
    return f"{_describe_settings(settings)}, {seeds} seed{'s' * (seeds != 1)}"


def _describe_settings(settings: Settings) -> str:
    steps = f" of {settings.steps} steps" if settings.steps else ""
    epochs = f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"
    return f"{epochs}{steps}, Adam with learning rate {settings.lr:g}, batches of {settings.batch}"


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has an exception for GPUs alone, and cuBLAS and captures have words of their own."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
