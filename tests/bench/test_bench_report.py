"""Results as files, tables, lines and pictures: what is read, merged, refused, and when it is stale."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import report
from bench import test_growth as cases
from bench.harness.providers import PROVIDERS
from bench.report import Run, __main__, growth, pictures, tables

ROOT = Path(__file__).parents[2]
ABOUT = {
    **{
        "device": "a processor, 2 cores, 1 threads",
        "kind": "cpu",
        "commit": "HEAD",
        "sigscale": "0.2.0",
        "torch": "2.15",
    },
    **{"triton": "3.9", "python": "3.12", "command": "pytest bench", "date": "2026-11-28 12:00 UTC"},
}
CASE = {"kind": "sketch", "values": "Gaussian", "dtype": "float32", "elements": 1024}
RESULT = {**CASE, "provider": "sigscale", "seconds": 1e-5, "over": {"torch.histc": [0.5, 0.4, 0.6]}}


SIZES = [4**e for e in range(4, 11)]
FIXED, EACH = 3e-5, 2e-9  # of a line that doubles at 15,000


def written(path, *results, about=ABOUT):
    lines = [{"provenance": about}, *results]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "bench/results").mkdir(parents=True)
    text = f"# Name\n\n{__main__.BEGIN}\nold\n{__main__.END}\n\nmore\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_up_to_date():
    """After a change under bench/results/: `make report`."""
    assert __main__.main(["--check"]) == 0


def test_runs_are_merged_stored_and_rendered(root):
    runs = [written(root / "a.jsonl", RESULT), written(root / "b.jsonl", {**RESULT, "values": "constant"})]
    assert __main__.main([*map(str, runs), "--name", "cpu-2026-11-28"], root) == 0
    stored = report.load(root / "bench/results/cpu-2026-11-28/results.jsonl")
    assert stored == Run(ABOUT, [RESULT, {**RESULT, "values": "constant"}])
    page = (root / "bench/README.md").read_text(encoding="utf-8")
    assert "| Gaussian | float32 | 2^10 | 10.0 | 0.50 (0.40-0.60) |" in page
    assert "a processor, 2 cores, 1 threads; sigscale 0.2.0" in page
    front = (root / "README.md").read_text(encoding="utf-8")
    assert front.startswith("# Name")
    assert front.endswith("more\n")
    assert "commit HEAD; `pytest bench`" in front
    assert "old" not in front
    assert __main__.main(["--check"], root) == 0
    (root / "bench/README.md").write_text("changed")
    assert __main__.main(["--check"], root) == 1


def test_runs_that_differ_are_not_merged(root):
    other = Run({**ABOUT, "commit": "another"}, [])
    with pytest.raises(SystemExit, match="differ in commit: 'HEAD' and 'another'"):
        report.merged([Run(ABOUT, []), other])


def test_an_unknown_provider_is_an_error(root):
    path = written(root / "run.jsonl", {**RESULT, "provider": "stranger"})
    with pytest.raises(SystemExit, match="unknown provider 'stranger': add it to PROVIDERS"):
        report.load(path)
    with pytest.raises(LookupError, match="unknown provider 'stranger'"):
        tables.table([{**RESULT, "provider": "stranger"}], "sketch")


def test_an_unknown_kind_is_an_error():
    with pytest.raises(LookupError, match="unknown kind of result 'odd'"):
        [*tables.text_tables([{**RESULT, "kind": "odd"}])]


def test_providers_are_told_apart():
    labels = [of.label for of in PROVIDERS.values()]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"x": 1}'])
def test_files_of_something_else(tmp_path, content):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"run.jsonl: must be a file of `pytest bench"):
        report.load(path)


def test_staleness():
    first = report.git("rev-list", "--max-parents=0", "HEAD").stdout.split()[0]
    assert report.is_stale(Run({"commit": first}, []))
    assert report.is_stale(Run({"commit": "unknown"}, []))
    clean = report.git("diff", "--quiet", "HEAD", "--", *report.CODE).returncode == 0
    assert report.is_stale(Run({"commit": "HEAD"}, [])) != clean


def test_commands_name_no_places():
    given = ["pytest", "bench", "-q", "--out=/x.jsonl", "--commit", "c0ffee", "--seconds", "1", "--out", "/y"]
    about = report.provenance(torch.device("cpu"), given, "c0ffee")
    assert (about["command"], about["commit"]) == ("pytest bench -q --seconds 1", "c0ffee")
    assert "threads" in about["device"]


def test_costs_and_refusals():
    over = {"torch.histc": [2.0, 1.9, 2.1], "read": [4.0, 3.9, 4.1]}
    refused = {**CASE, "provider": "wandb", "seconds": None, "over": {}, "refused": "no time"}
    other = {**RESULT, "provider": "wandb", "values": "constant", "over": {"read": [3.0, 3.0, 3.0]}}
    row, _ = tables.table([{**RESULT, "over": over}, refused, other], "sketch").to_dict("records")
    assert row["sigscale / read"] == "4.00 (3.90-4.10)"
    assert row["recipe of wandb.watch"] == "refuses"
    assert "recipe of wandb.watch" not in tables.table([RESULT, refused], "sketch")
    lost = tables.losses([RESULT, {**RESULT, "over": over}, refused])
    assert "slower than torch.histc in 1 of 2:\n  sketch Gaussian float32 2^10: 2.00" in lost
    assert "slower than read" not in lost
    assert "wandb, refused: no time (1 cases)" in lost


def test_summary():
    monitor = {"kind": "monitor", "network": "MLP", "provider": "sigscale", "seconds": 1.0}
    steps = {**monitor, "over": {"no monitor": [1.25, 1.2, 1.3]}}
    table4 = {"kind": "table4", "mode": "eager", "model": "both", "provider": "sigscale", "seconds": 1.0}
    text = tables.summary([RESULT, steps, {**table4, "over": {"plain": [1.1, 1.0, 1.2]}, "paper": 0.31}])
    assert "| distribution of a tensor | torch.histc of log2 abs(x) | float32 | 0.50 |" in text
    assert "A monitored training step takes 1.25 (MLP) times as long." in text
    assert "Both remedies add +10.0 % to a training step (eager; the paper's Table 4: +31.0 %)." in text


def test_options_belong_together(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--name", "x"])
    assert "RUN.jsonl and --name belong together" in capsys.readouterr().err


@pytest.mark.parametrize(("fixed", "each"), [(FIXED, EACH), (0.0, EACH), (FIXED, 0.0)])
def test_fit(fixed, each):
    for seed in range(5):
        noise = 1 + 0.02 * np.random.default_rng(seed).uniform(-1, 1, len(SIZES))
        found = growth.fit([(n, (fixed + each * n) * e) for n, e in zip(SIZES, noise, strict=True)])
        assert found[0] == pytest.approx(fixed, rel=0.06, abs=FIXED / 50 if fixed else EACH * SIZES[0])
        assert found[1] == pytest.approx(each, rel=0.06, abs=0.1 * FIXED / SIZES[-1])


def growing(times, provider="sigscale"):
    about = {"kind": "growth", "series": cases.SERIES, "unit": "seeds", "provider": provider}
    return [{**about, "n": n, "seconds": t, "over": {}} for n, t in times.items()]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({2: 3.0, 8: 6.0}, "launch cost ends at 4 seeds"),
        ({2: 1.0, 4: 4.0}, ""),
        ({2: 2.0, 4: 2.1}, ""),
        ({2: 4.0, 4: 2.0}, ""),
    ],
)
def test_where_launch_cost_ends_if_measured(times, words):
    assert growth.end(growing(times)) == words


def test_series_of_elements_come_from_other_benchmarks():
    about = {"kind": "activation", "function": "tanh", "direction": "forward+backward", "dtype": "float32"}
    measured = [{**about, "elements": n, "provider": "eager", "seconds": 1e-6 * n} for n in SIZES]
    found = growth.series([*measured, {**measured[0], "provider": "compile"}, {**measured[0], "dtype": "x"}])
    assert found == {"tanh, training": [{**of, "n": of["elements"], "unit": "elements"} for of in measured]}


def test_picture_and_table(tmp_path):
    assert pictures.growing([]) is None
    measured = [*growing({2: 3.0, 8: 6.0}), *growing({2: 5.0, 8: 20.0}, "PyTorch")]
    figure = pictures.growing(measured)
    assert figure.axes[0].get_title().endswith("launch cost ends at 4 seeds")
    figure.savefig(tmp_path / "growth.png")
    row, _ = tables.table(measured, "growth").to_dict("records")
    assert (row["sigscale, ms a seed"], row["PyTorch, ms a seed"]) == ("1500.00", "2500.00")


def seeds_calls(seeds):
    with ExitStack() as stack:
        return cases.calls(seeds, torch.device("cpu"), stack)


def test_old_against_new():
    assert {*seeds_calls(2)} == {"sigscale", "PyTorch"}


def test_what_is_wrong_is_not_timed(monkeypatch):
    right = cases.Seeds
    wrong = lambda seeds, device, native=True: right(seeds if native else [0, 0], device, native=native)  # noqa: E731
    monkeypatch.setattr(cases, "Seeds", wrong)
    with pytest.raises(AssertionError, match="2 seeds: the gradients differ"):
        seeds_calls(2)
