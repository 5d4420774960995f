"""The output folder of one experiment: `run.json` says which, `checkpoints/` has each run's last epoch.

`gradients/` has what each run's monitor recorded up to there, for `sigscale.GradientHistory.load`.

A folder belongs to one experiment: it is never mixed with another's, and continued only when asked to.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.cifar10.errors import FolderError
from examples.cifar10.train import Run
from sigscale.files import atomic

RESULTS = ("results.json", "results.csv", "figure3.png", "figure3.svg", "gradients.png", "gradients.svg")


@dataclass(frozen=True)
class Folder:
    path: Path

    def check(self, experiment: Mapping[str, Any], *, resume: bool) -> None:
        """Raise FolderError unless `experiment` may begin here (or, with `resume`, go on); write nothing."""
        self._check_writable()
        if not self._identity.exists():
            if foreign := [name for name in RESULTS if (self.path / name).exists()]:
                raise FolderError(
                    f"{self.path}: {foreign[0]} is there, but not the run.json of the run that wrote it. "
                    "Name another folder with --out."
                )
            return
        there = self._read_identity()
        changed = [
            f"{key} {there.get(key)!r} there, {value!r} now"
            for key, value in experiment.items()
            if there.get(key) != value
        ]
        if changed:
            raise FolderError(
                f"{self.path}: holds another run ({'; '.join(changed)}). "
                "Name another folder with --out, or repeat that run's options."
            )
        if not resume:
            finished = (self.path / RESULTS[0]).exists()
            state, verb = ("a finished", "Report it again") if finished else ("an unfinished", "Continue it")
            raise FolderError(
                f"{self.path}: holds {state} run of these settings. "
                f"{verb} with --resume, or name another folder with --out."
            )

    def begin(self, experiment: Mapping[str, Any]) -> None:
        """Make the folder and say in it what `experiment` it is of."""
        for inner in ("checkpoints", "gradients"):
            (self.path / inner).mkdir(parents=True, exist_ok=True)
        with atomic(self._identity) as part:
            part.write_text(json.dumps(experiment, indent=2) + "\n", encoding="utf-8")

    def save(self, run: Run) -> None:
        run.monitor.save(self._gradients(run))  # first: what is ahead of the checkpoint can be cut off
        with atomic(self._checkpoint(run)) as part:
            torch.save(run.state_dict(), part)

    def restore(self, run: Run) -> None:
        """Put `run` where it was after its last complete epoch; leave it alone if it never got that far."""
        checkpoint = self._checkpoint(run)
        if not checkpoint.exists():
            return
        path = checkpoint
        try:
            run.load_state_dict(torch.load(path, weights_only=True))
            path = self._gradients(run)
            run.load_gradients(path)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise FolderError(
                f"{path}: missing or damaged ({type(error).__name__}). "
                f"Delete {checkpoint}: this one run then starts anew."
            ) from error

    @property
    def _identity(self) -> Path:
        return self.path / "run.json"

    def _checkpoint(self, run: Run) -> Path:
        return self.path / "checkpoints" / f"{run.pipeline.name}-seed{run.seed}.pt"

    def _gradients(self, run: Run) -> Path:
        return self.path / "gradients" / f"{run.pipeline.name}-seed{run.seed}.npz"

    def _read_identity(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._identity.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise FolderError(
                f"{self._identity}: not readable as JSON ({error}). Name another folder with --out."
            ) from error

    def _check_writable(self) -> None:
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise FolderError(f"{self.path}: {existing} is not a folder. Name another one with --out.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise FolderError(f"{self.path}: no permission to write in {existing}. Name another --out.")
