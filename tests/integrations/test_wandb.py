"""What an offline run of Weights & Biases stores is the monitor's history."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

wandb = pytest.importorskip("wandb")
from wandb.proto.wandb_internal_pb2 import Record

import sigscale as ss
from sigscale.integrations.wandb import WandbLogger
from tests.oracles.logged import histograms, scalars, train

BLOCK, FILE_HEADER, HEADER = 2**15, 7, struct.Struct("<IHB")  # checksum, length, kind
WHOLE, LAST = 1, 4
QUICK = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)


def records(path: Path) -> Iterator[Record]:
    """The records of a run's file, which is a LevelDB log."""
    content, offset, data = path.read_bytes(), FILE_HEADER, b""
    while offset + HEADER.size <= len(content):
        left = BLOCK - offset % BLOCK
        if left < HEADER.size:
            offset += left
            continue
        _, length, kind = HEADER.unpack_from(content, offset)
        offset += HEADER.size + length
        data += content[offset - length : offset]
        if kind in (WHOLE, LAST):
            yield Record.FromString(data)
            data = b""


def logged(folder: Path) -> Iterator[dict[str, Any]]:
    """What run.log() got, in order."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for record in records(path):
        items = record.history.item
        if items:
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.works_with("Weights & Biases", "monitor")
def test_records(tmp_path):
    sketches: dict[int, dict[str, ss.QuantileSketch]] = {}
    with wandb.init(mode="offline", dir=tmp_path, settings=QUICK) as run:
        history = train(partial(WandbLogger, run=run, histogram_every=3), sketches=sketches)
    wandb.teardown()  # its process ends once everything is written
    found: dict[str, dict[int, Any]] = {}
    for record in logged(tmp_path):
        for tag, number in record.items():
            if tag.startswith(("gradients/q", "gradients/h")):
                found.setdefault(tag, {})[record["gradients/step"]] = number
    want = scalars(history, ["q05", "q25", "q50", "q75", "q95"])
    for tag, drawn in histograms(sketches, [0, 3, 6]).items():
        for place, part in enumerate(("values", "bins")):
            want[f"{tag}/{part}"] = {step: histogram[place] for step, histogram in drawn.items()}
        want[f"{tag}/_type"] = dict.fromkeys(drawn, "histogram")
    assert found == {tag: numbers for tag, numbers in want.items() if numbers}


def test_without_a_run():
    with pytest.raises(RuntimeError, match=r"no run to log to: call wandb.init\(\) first, or pass run="):
        train(WandbLogger)
