"""What `scale_activations` and `unscale_activations` did to a model, to read and to use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ConversionEntry:
    """An activation of a model, by the name of its module or of the module whose forward calls it.

    `before` and `after` say what it was and is, `after` empty where nothing changed; `note` says where a call
    is, why something was left, or what about it deserves a look.
    """

    name: str
    before: str
    after: str = ""
    note: str = ""


@dataclass(frozen=True, repr=False)
class ConversionReport:
    """What changed in a model, what was left and why, and what is out of reach.

    Attributes:
        model: the model that was passed.
        changed, left: activations that are scaled (or plain) now, and those that are not.
        unseen: activations that no module computes.
        parameters: the alphas that learn, for an optimizer; of `unscale_activations`, those it removed.
        dry_run: whether the report says what would change, with nothing changed.
    """

    model: nn.Module
    changed: tuple[ConversionEntry, ...] = ()
    left: tuple[ConversionEntry, ...] = ()
    unseen: tuple[ConversionEntry, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()
    dry_run: bool = False

    def __repr__(self) -> str:
        title = f"activations: {len(self.changed)} " + ("would change" if self.dry_run else "changed")
        title += f", {len(self.left)} left" + (f", {len(self.unseen)} not seen" if self.unseen else "")
        rows = [(entry.name, f"{entry.before} -> {entry.after}", entry.note) for entry in self.changed]
        rows += [(entry.name, f"{entry.before}, left", entry.note) for entry in self.left]
        rows += [(entry.name, f"{entry.before}, not seen", entry.note) for entry in self.unseen]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:{widths[0]}}  {what:{widths[1]}}  {note}".rstrip() for name, what, note in rows]
        return "\n".join([title, *lines])
