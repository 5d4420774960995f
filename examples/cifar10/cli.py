"""`python -m examples.cifar10`: the four pipelines of the paper's Figure 3, from the data to the picture."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from tqdm import tqdm

from examples.cifar10 import data, options, results
from examples.cifar10.data import Cifar10
from examples.cifar10.errors import CommandError
from examples.cifar10.folder import RESULTS, Folder
from examples.cifar10.results import Outcome
from examples.cifar10.train import FIGURE_3, Run, Settings

GENERATED_WARNING = "GENERATED IMAGES, NOT CIFAR-10: these accuracies mean nothing"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = options.parser().parse_args(argv)
    try:
        _experiment(arguments)
    except (CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = shlex.join([*(word for word in argv if word != "--resume"), "--resume"])
        print(f"\ninterrupted; to go on: python -m examples.cifar10 {again}", file=sys.stderr)
        return 130
    return 0


def _experiment(arguments: argparse.Namespace) -> None:
    settings = options.settings(arguments)
    folder = Folder(options.out_folder(arguments))
    name = torch.cuda.get_device_name(arguments.device) if arguments.device.type == "cuda" else "cpu"
    experiment: dict[str, Any] = {**asdict(settings), "seeds": arguments.seeds, "device": name}
    folder.check(experiment, resume=arguments.resume)
    cifar = data.load(arguments.data, allow_generated=arguments.quick)
    _check_batch(settings, cifar)
    experiment |= {"data_sha256": cifar.sha256, "data_generated": cifar.generated}
    folder.check(experiment, resume=arguments.resume)
    folder.begin(experiment)
    if cifar.generated:
        print(f"{GENERATED_WARNING}.\nNo data was found and none could be downloaded. Real data: --data DIR.")
        print(f"({cifar.why_generated})")
    print(f"data: {cifar.source}; {len(cifar.train.labels):,} + {len(cifar.test.labels):,} images")
    print(f"on {name}: {_describe(experiment)}", flush=True)
    outcomes = _train(arguments, settings, cifar, folder)
    _report(outcomes, folder, {**experiment, "data_source": cifar.source})


def _train(
    arguments: argparse.Namespace, settings: Settings, cifar: Cifar10, folder: Folder
) -> list[Outcome]:
    """Every pipeline with every seed, one after the other; a checkpoint after each epoch."""
    cifar = replace(cifar, train=cifar.train.to(arguments.device), test=cifar.test.to(arguments.device))
    steps = settings.steps_per_epoch(len(cifar.train.labels))
    total = len(FIGURE_3) * arguments.seeds * settings.epochs * steps
    outcomes = []
    with tqdm(total=total, unit="step", mininterval=1 if sys.stderr.isatty() else 60) as bar:
        for seed in range(arguments.seeds):
            for pipeline in FIGURE_3:
                run = Run(pipeline, seed, settings, cifar, arguments.device)
                folder.restore(run)
                bar.update(len(run.history) * steps)
                while not run.done:
                    bar.set_description(f"{pipeline.label}, seed {seed}, epoch {len(run.history) + 1}", False)
                    run.train_epoch(bar.update)
                    folder.save(run)
                outcomes.append(Outcome(pipeline, seed, run.history, run.monitor.history()))
                accuracy = run.history[-1]["test_accuracy"]
                bar.write(f"{pipeline.label}, seed {seed}: test accuracy {accuracy:.2%}", file=sys.stdout)
    return outcomes


def _report(outcomes: list[Outcome], folder: Folder, experiment: dict[str, Any]) -> None:
    from examples.cifar10 import figures, heatmaps

    title = "Combined regime (network of Table 3, parameters from [-10, 10)) on CIFAR-10"
    warning = GENERATED_WARNING if experiment["data_generated"] else ""
    results.write_csv(folder.path / "results.csv", outcomes)
    results.write_json(folder.path / "results.json", experiment, outcomes)
    title = f"{title}\n{_describe(experiment)}"
    figures.draw(outcomes, folder.path / "figure3", title=title, warning=warning)
    heatmaps.draw(outcomes, folder.path / "gradients", title=title, warning=warning)
    print("", *filter(None, [warning]), results.table(outcomes), sep="\n")
    print(f"\nwritten to {folder.path}: {', '.join(RESULTS)}, gradients/*.npz")


def _check_batch(settings: Settings, cifar: Cifar10) -> None:
    images = len(cifar.train.labels)
    if settings.batch > images:
        raise CommandError(
            f"--batch {settings.batch}: a batch cannot have more than the {images:,} training images. "
            f"Choose at most {images}; the default is {Settings.batch}."
        )


def _describe(experiment: dict[str, Any]) -> str:
    steps = f" of {experiment['steps']} steps" if experiment["steps"] else ""
    seeds = "1 seed" if experiment["seeds"] == 1 else f"{experiment['seeds']} seeds"
    return (
        f"{experiment['epochs']} epochs{steps}, Adam with learning rate {experiment['lr']:g}, "
        f"batches of {experiment['batch']}, {seeds}"
    )
