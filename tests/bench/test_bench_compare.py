"""`make bench-compare`: the rule on made-up numbers, the two packages, and that nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import base
import compare
from verdict import FASTER, NONE, SLOWER, by_chance, judge

A = [1.00, 1.02, 1.01, 0.99, 1.00]


@pytest.mark.parametrize(
    ("tree", "word"),
    [
        ([0.90, 0.91, 0.89, 0.90, 0.92], FASTER),
        ([1.10, 1.12, 1.09, 1.11, 1.10], SLOWER),
        (A, NONE),
        ([0.90, 0.91, 1.00, 0.90, 0.92], NONE),  # one time among those of the base
        ([1.10, 1.12, 1.01, 1.11, 1.10], NONE),
        ([0.985, 0.986, 0.985, 0.985, 0.986], NONE),  # apart, but within the margin
        ([1.025, 1.024, 1.023, 1.021, 1.022], SLOWER),
    ],
)
def test_rule(tree, word):
    verdict = judge(A, tree)
    assert verdict.word == word
    assert verdict.low <= verdict.ratio <= verdict.high


def test_the_ratio_is_of_the_same_round():
    """A machine that slows down by and by hits both sides."""
    verdict = judge([1, 2, 4], [0.5, 1, 2])
    assert (verdict.low, verdict.ratio, verdict.high) == (0.5, 0.5, 0.5)
    assert verdict.word == NONE


def test_a_margin():
    assert judge(A, [0.9] * 5, margin=0.2).word == NONE


@pytest.mark.parametrize(("one", "other"), [([1, 1], [1, 1]), ([1, 1, 1], [1, 1, 1, 1]), ([], [])])
def test_too_few_rounds(one, other):
    with pytest.raises(ValueError, match="must be as many of both, at least 3"):
        judge(one, other)


def test_by_chance():
    assert by_chance(3) == 2 / 20
    assert by_chance(5) == 2 / 252


LAUNCH = {"kind": "launch", "function": "tanh", "call": "forward"}
LINE = {
    "outcome": "passed",
    "results": [{**LAUNCH, "provider": "sigscale", "seconds": 1.0, "ratios": {}, "quartiles": [0.9, 1.1]}],
}


def test_cases():
    """Named by what was done and by whom; without those that failed or refused."""
    refused = {**LAUNCH, "provider": "eager", "seconds": None}
    lines = {
        "one": LINE,
        "two": {"outcome": "passed", "results": [refused, {**refused, "seconds": 2.0}]},
        "three": {**LINE, "outcome": "failed"},
    }
    found = dict(compare.cases(lines))
    assert found == {"launch tanh forward: sigscale": 1.0, "launch tanh forward: eager": 2.0}
    assert [compare.ours(case) for case in found] == [True, False]


def times(base, tree):
    return {"base": [{"x: sigscale": t} for t in base], "tree": [{"x: sigscale": t} for t in tree]}


def test_only_what_ran_in_every_round_is_compared():
    of = times([1, 2, 3], [4, 5, 6])
    of["tree"][1]["new: sigscale"] = of["tree"][2]["new: sigscale"] = 1.0
    of["base"][0]["old: sigscale"] = 1.0
    assert compare.paired(of) == {"x: sigscale": ([1, 2, 3], [4, 5, 6])}
    assert [*compare.unpaired(of)] == [
        "not in every round of the tree: old: sigscale",
        "not in every round of the base: new: sigscale",
    ]


def test_table():
    verdicts = {"x: sigscale": judge(A, [0.9] * 5), "y: sigscale": judge(A, A), "x: eager": judge(A, A)}
    text = compare.table(verdicts, 5)
    assert "x: sigscale   0.90  0.88-0.91    faster" in text
    assert "1 faster, 0 slower, 1 no difference; were nothing different, up to 0.0" in text
    assert "control, code of others: 0 of 1 with a difference, ratios from 1.00 to 1.00" in text


def git(where, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    for folder in ("kernels", "sigscale"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text("old = True\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "one")
    (root / "kernels" / "__init__.py").write_text("old = False\n")
    return root


def left(root):
    return len(git(root, "worktree", "list").splitlines()) - 1, git(root, "status", "--porcelain")


class TestSides:
    def test_both_packages(self, repository):
        with base.sides("HEAD", repository) as both:
            assert (both.base / "sigscale/kernels/__init__.py").read_text() == "old = True\n"
            assert (both.tree / "sigscale/kernels/__init__.py").read_text() == "old = False\n"
            assert (both.tree / "sigscale/__init__.py").read_text() == "old = True\n"
            assert not both.same
            assert left(repository) == (0, " M kernels/__init__.py\n")
        assert not both.scratch.exists()

    def test_the_same_code(self, repository):
        git(repository, "commit", "--all", "--quiet", "--message", "two")
        with base.sides("HEAD", repository) as both:
            assert both.same

    def test_nothing_is_left_after_an_interrupt(self, repository, monkeypatch):
        def interrupted(*arguments):
            assert left(repository)[0] == 1
            raise KeyboardInterrupt

        monkeypatch.setattr(base, "package", interrupted)
        with pytest.raises(KeyboardInterrupt), base.sides("HEAD", repository):
            pass
        assert left(repository) == (0, " M kernels/__init__.py\n")
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt), base.sides("HEAD", repository) as both:
            raise KeyboardInterrupt
        assert not both.scratch.exists()

    @pytest.mark.parametrize(
        ("ref", "message"),
        [
            ("nonsense", "BASE=nonsense: there is no such commit, branch or tag"),
            ("--all", "BASE=--all: there is no such"),
            ("", "name a commit to compare with: make bench-compare BASE=HEAD~1"),
        ],
    )
    def test_unknown_names(self, repository, ref, message):
        with pytest.raises(SystemExit, match=message), base.sides(ref, repository):
            pass

    def test_a_base_that_is_no_package(self, repository):
        git(repository, "rm", "--quiet", "--cached", "sigscale/__init__.py")
        git(repository, "commit", "--quiet", "--message", "two")
        with (
            pytest.raises(SystemExit, match="HEAD has no sigscale/"),
            base.sides("HEAD", repository),
        ):
            pass
        assert left(repository)[0] == 0

    def test_a_base_whose_checkout_is_not_clean(self, repository):
        """Since a filter changes it."""
        (repository / ".gitattributes").write_text("* filter=odd\n")
        git(repository, "add", ".gitattributes")
        git(repository, "commit", "--quiet", "--message", "two")
        git(repository, "config", "filter.odd.smudge", "cat && echo more")
        with pytest.raises(SystemExit, match="differs from the commit"), base.sides("HEAD", repository):
            pass
        assert left(repository)[0] == 0


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_too_few_rounds_asked_for():
    with pytest.raises(SystemExit, match="--rounds 2: must be at least 3"):
        compare.main(["HEAD", "--rounds", "2"])


@pytest.mark.parametrize(
    ("code", "message"), [(5, "no benchmark is selected by -k x"), (2, "benchmarks failed")]
)
def test_a_run_without_results(tmp_path, monkeypatch, code, message):
    def run(command, log, seconds, env):
        log.write_text("what pytest said")
        return compare.limited.Ended("failed", code, 1.0)

    monkeypatch.setattr(compare.limited, "run", run)
    with pytest.raises(SystemExit, match=message):
        compare.once(tmp_path, ["-k", "x"], tmp_path / "base-1")


@pytest.mark.parametrize(
    ("words", "selection"),
    [([], ["bench"]), (["--"], ["bench"]), (["--rounds", "4", "--", "a.py", "-k", "x"], ["a.py", "-k", "x"])],
)
def test_the_selection(monkeypatch, capsys, words, selection):
    asked = []

    def measured(both, selection, rounds):
        asked.append(selection)
        return times([1, 1, 1], [1, 1, 1])

    monkeypatch.setattr(compare, "measured", measured)
    monkeypatch.setattr(compare, "sides", lambda ref: nullcontext(base.Sides(*4 * ["c0ffee"], same=True)))
    assert compare.main(["HEAD", *words]) == 0
    assert asked == [selection]
    assert "the code is the same: this shows the noise" in capsys.readouterr().out


def test_by_turns(monkeypatch, tmp_path):
    both = base.Sides(tmp_path / "base", tmp_path / "tree", "c0ffee", tmp_path, same=False)
    places = []

    def once(place, selection, stem):
        places.append(place.name)
        return {"x: sigscale": len(places)}, 1.0

    monkeypatch.setattr(compare, "once", once)
    found = compare.measured(both, ["bench"], 3)
    assert places == ["base", "tree"] * 3
    assert compare.paired(found) == {"x: sigscale": ([1, 3, 5], [2, 4, 6])}
