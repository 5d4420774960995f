"""Claims, rules, verdicts and the report: on runs of which the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from examples.cifar10 import claims, report, verdicts
from examples.cifar10.claims import CLAIMS
from examples.cifar10.pipelines import FIGURES, unique
from examples.cifar10.store import Outcome
from examples.cifar10.train import NUMBERS
from examples.cifar10.verdicts import Verdict

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

C1, C2, C3, C4 = CLAIMS
REPRODUCED, NOT, DIFFERS, FEW = Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.DIFFERS, Verdict.TOO_FEW
READING = {"pixels": "unit", "conv": None, "bias": None, "data_sha256": "5e1f", "data_generated": False}
EXPERIMENT = {"epochs": 15, "batch": 32, "lr": 0.001, "steps": None, **READING}
MADE = {"date": "2026-01-02T03:04:05+00:00", "commit": "c0ffee", "seconds": 60.0, "seeds": [0, 1]}
ABOUT = {"device": "a device", "platform": "a platform", "versions": {"torch": "2.14.0"}, **MADE}


def runs(key, gains, *, early=0.0, larger=10.0, start=0.1, late=0.5, epochs=15, plain=0.12):
    """Runs of a figure; in the second pipeline the seeds' accuracies end `gains` points above the others'."""
    found = []
    for rank, pipeline in enumerate(FIGURES[key].pipelines):
        for seed, gain in enumerate(gains):
            curves = {name: np.zeros(epochs) for name in NUMBERS}
            accuracy = np.full(epochs, plain if rank < 2 else 0.1) + 0.001 * seed * (rank < 2)
            gradient = np.linspace(1, late, epochs) * start * (1 + 0.01 * seed)
            if rank == 1:
                accuracy[claims.EARLY :] += gain / 100
                accuracy[: claims.EARLY] += early / 100
                gradient *= larger
            curves["test_accuracy"] = accuracy
            for name in ("gradient_q50", "gradient_q95", "loss_gradient_q50"):
                curves[name] = gradient.copy()
            found.append(Outcome(pipeline.name, pipeline.label, seed, curves, ABOUT))
    return found


def found(claim, outcomes):
    return {finding.statement.name: finding.judgment for finding in verdicts.judge(claim, outcomes)}


def verdicts_of(claim, outcomes):
    return {name: judgment.verdict for name, judgment in found(claim, outcomes).items()}


GAINS = (4, 5, 6, 7, 8, 9, 10, 11)
NOTHING = (1, -1, 2, -2, 3, -3, 4, -4)
SMALL = [1.0 + 0.1 * seed for seed in range(8)]


class TestRules:
    """p values by hand: of n differences that are all positive, 1 / 2^n one-sided."""

    @pytest.mark.parametrize(
        ("differences", "alternative", "p"),
        [
            ([1, 2, 3], "two-sided", 2 / 8),
            ([1, 2, 3, 4, 5], "two-sided", 2 / 32),
            ([1, 2, 3, 4, 5, 6], "two-sided", 2 / 64),
            ([1, 2, 3, 4, 5, 6], "greater", 1 / 64),
            ([1, 2, 3, 4, 5, 6], "less", 1.0),
            ([-1, 2, 3, 4, 5, 6], "greater", 2 / 64),  # rank sums of the negative: 0, 1
            ([1, 2, -3, 4, 5, 6], "greater", 5 / 64),  # {}, 1, 2, 3, 1 + 2
            ([0, 0, 1, 2, 3], "greater", 1 / 8),
            ([2, 2, 2, 2, 2, 2], "greater", 1 / 64),
            ([0.1 + 0.2, -0.3, 5, 6], "greater", 3 / 16),  # the same within rounding: mean rank 1.5
            ([0, 0, 0], "two-sided", 1.0),
            ([], "two-sided", 1.0),
        ],
    )
    def test_signed_rank(self, differences, alternative, p):
        assert verdicts.signed_rank(np.array(differences, float), alternative) == pytest.approx(p)

    def test_interval_is_students(self):
        mean, low, high = verdicts.interval(np.array([1.0, 2.0, 3.0]))  # t = 4.303, s = 1
        assert (mean, low, high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
        assert [math.isnan(x) for x in verdicts.interval(np.array([1.0]))] == [False, True, True]

    @pytest.mark.parametrize(
        ("rule", "given", "options", "verdict"),
        [
            (verdicts.above, [1, 2, 3, 4, 5, 6], (0,), REPRODUCED),
            (verdicts.above, [1, 2, 3, 4, 5, 6], (3.5,), REPRODUCED),
            (verdicts.above, [1, 2, 3, 4, 5, 6], (3.6,), NOT),
            (verdicts.above, [1, -2, 3, -4, 5, -6], (0,), NOT),
            (verdicts.above, [0] * 25, (0,), NOT),
            (verdicts.above, [-1, -2, -3, -4, -5, -6], (0,), DIFFERS),
            (verdicts.above, [1, 2, 3, 4, 5], (0,), FEW),
            (verdicts.above, [1, 2, 3, 4, 5, math.nan, math.inf], (0,), FEW),
            (verdicts.above, [], (0,), FEW),
            (verdicts.alike, [0] * 6, (1.0,), REPRODUCED),
            (verdicts.alike, [0.5, -0.5, 0.4, -0.3, 0.2, 0.6], (1.0,), REPRODUCED),
            (verdicts.alike, [2, -2, 2, -2, 2, -2], (1.0,), NOT),
            (verdicts.alike, [2, 2, 2, 3, 3, 3], (1.0,), DIFFERS),
            (verdicts.alike, [-2, -2, -2, -3, -3, -3], (1.0,), DIFFERS),
            (verdicts.alike, [0] * 5, (1.0,), FEW),
            (verdicts.never, [False] * 6, (), REPRODUCED),
            (verdicts.never, [True, *[False] * 5], (), NOT),
            (verdicts.never, [True] * 3 + [False] * 3, (), NOT),
            (verdicts.never, [True] * 4 + [False] * 2, (), DIFFERS),
            (verdicts.never, [False] * 5, (), FEW),
            (verdicts.never, [], (), FEW),
        ],
    )
    def test_rules(self, rule, given, options, verdict):
        assert rule(given, *options).verdict == verdict

    def test_seeds_that_do_not_differ_are_no_evidence(self):
        """Of six, one tie leaves five, with which the level cannot be reached; all tied, nothing differs."""
        judgment = verdicts.above([3.0, 2.0, 4.0, 5.0, 6.0, 0.0], 0.0)
        assert (judgment.verdict, judgment.seeds) == (FEW, 6)
        assert "n = 5; fewer than 6 seeds that differ" in judgment.why
        assert verdicts.above([0.0] * 6, 0.0).verdict == NOT

    def test_holms_correction(self):
        """The textbook's: 0.01 times 4, 0.02 times 3, then no less than what came before."""
        ps = [0.03, 0.01, 0.02, 0.04]
        factors = verdicts.holm(ps)
        assert [f * p for f, p in zip(factors, ps, strict=True)] == pytest.approx([0.06, 0.04, 0.06, 0.06])
        differences = [1, 2, 3, 4, 5, 6]  # p = 1 / 32
        assert verdicts.above(differences, factor=1.5).verdict == REPRODUCED
        assert verdicts.above(differences, factor=1.7).verdict == NOT
        assert verdicts.alike([0] * 6, 1.0, factor=4).verdict == NOT

    def test_never_bounds_the_share(self):
        judgment = verdicts.never([False] * 25)
        assert (judgment.effect, judgment.low) == (0, 0)
        assert judgment.high == pytest.approx(1 - 0.025 ** (1 / 25))

    def test_the_worst_of_several(self):
        order = [DIFFERS, NOT, FEW, REPRODUCED]
        for place, verdict in enumerate(order):
            assert verdicts.worst(reversed(order[place:])) == verdict


class TestClaims:
    def test_are_about_pipelines_that_there_are(self):
        names = {pipeline.name for pipeline in unique(FIGURES.values())}
        statements = [statement for claim in CLAIMS for statement in claim.statements]
        assert {name for statement in statements for name in statement.pipelines} == names
        assert len({statement.name for statement in statements}) == len(statements)

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_a_clear_effect_is_reproduced(self, claim):
        early = 3 if claim is C2 else 0.1
        outcomes = runs(claim.figure, GAINS, early=early)
        if claim is C4:
            outcomes += [run for run in runs("3", GAINS) if "tanh" in run.pipeline]
        assert set(verdicts_of(claim, outcomes).values()) == {REPRODUCED}
        assert len(found(claim, outcomes)) == len(claim.statements)
        assert verdicts.verdict(claim, verdicts.judge(claim, outcomes)) == REPRODUCED

    def test_numbers_of_a_clear_effect(self):
        gain = found(C1, runs("1", GAINS))["C1b"]
        assert (gain.seeds, gain.p) == (8, 2 / 2**8)
        assert gain.effect == pytest.approx(7.5)
        half = stats.t.ppf(0.975, 7) * np.std(GAINS, ddof=1) / 8**0.5
        assert (gain.low, gain.high) == pytest.approx((7.5 - half, 7.5 + half))
        assert found(C1, runs("1", GAINS))["C1c"].effect == pytest.approx(1)  # tenfold

    @pytest.mark.parametrize(
        ("gains", "effects", "expected"),
        [
            (NOTHING, {"larger": 1.0, "late": 1.0}, [REPRODUCED, NOT, NOT, REPRODUCED, NOT]),
            (
                [-g for g in GAINS],
                {"early": -3, "larger": 0.1, "late": 2.0},
                [DIFFERS] * 3 + [REPRODUCED, DIFFERS],
            ),
            (SMALL, {}, [REPRODUCED, NOT, REPRODUCED, REPRODUCED, REPRODUCED]),
        ],
        ids=["no effect", "opposite", "not considerable"],
    )
    def test_other_effects(self, gains, effects, expected):
        outcomes = runs("1", gains, **effects)
        found_ = verdicts_of(C1, outcomes)
        assert [found_[f"C1{letter}"] for letter in "abcde"] == expected
        overall = DIFFERS if DIFFERS in expected else NOT
        assert verdicts.verdict(C1, verdicts.judge(C1, outcomes)) == overall

    def test_three_seeds_are_too_few(self):
        judgments = found(C2, runs("2", GAINS[:3], early=3))
        assert {judgment.verdict for judgment in judgments.values()} == {FEW}
        assert judgments["C2b"].p == 2 / 2**3
        assert "n = 3" in judgments["C2b"].why

    @pytest.mark.parametrize(
        ("epochs", "told"), [(1, {"C1c"}), (5, {"C1a", "C1c", "C1d"}), (11, {"C1a", "C1c", "C1d"})]
    )
    def test_too_few_epochs(self, epochs, told):
        judgments = found(C1, runs("1", GAINS, epochs=epochs))
        few = {name for name, judgment in judgments.items() if judgment.verdict == FEW}
        assert few == {"C1a", "C1b", "C1c", "C1d", "C1e"} - told
        assert judgments["C1b"].why == f"epochs: {epochs}, and the statement needs 12"

    @pytest.mark.parametrize(
        ("name", "value", "exploded"),
        [
            ("gradient_q95", 99.0, False),
            ("gradient_q95", 101.0, True),
            ("gradient_q95", math.nan, True),
            ("gradient_nonfinite", 1.0, True),
        ],
    )
    def test_what_an_explosion_is(self, name, value, exploded):
        outcomes = runs("2", GAINS, start=1e-3)
        outcomes[-1].curves[name][7] = value
        assert found(C2, outcomes)["C2d"].effect == exploded / len(GAINS)

    def test_gradients_that_are_not_finite_are_left_out_and_zeros_are_not(self):
        outcomes = runs("2", GAINS)
        outcomes[0].curves["gradient_q50"][0] = math.inf
        for run in outcomes[1 : len(GAINS)]:
            run.curves["gradient_q50"][0] = 0.0
        judgment = found(C2, outcomes)["C2c"]
        assert (judgment.seeds, judgment.verdict) == (len(GAINS) - 1, REPRODUCED)
        assert "1 of 8 seeds left out" in judgment.why
        assert 11 < judgment.effect < 13  # zeros count as 1e-12

    def test_only_seeds_of_both_pipelines_are_paired(self):
        outcomes = [run for run in runs("2", GAINS) if (run.pipeline, run.seed) != ("deep-tanh", 0)]
        judgment = found(C2, outcomes)["C2b"]
        assert judgment.seeds == len(GAINS) - 1
        assert judgment.effect == pytest.approx(np.mean(GAINS[1:]))

    def test_pipelines_that_were_not_run(self):
        outcomes = runs("4", GAINS)
        assert [claim.name for claim in CLAIMS if verdicts.judge(claim, outcomes)] == ["C4"]
        lines = verdicts.left_out(outcomes)
        assert lines[0] == "C1 is left out: large-tanh-r, large-tanh not run."
        assert lines[-1] == "C4 is left out in part (C4f, C4g): combined-tanh, combined-tanh-a2-r not run."
        assert len(lines) == 4


class TestReport:
    def written(self, outcomes, **changes):
        return report.render(outcomes, {**EXPERIMENT, **changes}, ["![a picture](figure1.png)"])

    def test_says_what_was_found_and_run(self):
        text = " ".join(self.written(runs("1", GAINS)).split())
        for part in (
            "| C1 | Figure 1, Section 3.1 | 5 of 5 | **reproduced** |",
            "n = 8; Wilcoxon, two-sided p = 0.0078 (Holm: 0.023); difference in points +7.50 (95 %: +5.45",
            "tanh, r = 0.01: 19.9 % (",
            "![a picture](figure1.png)",
            "deep-tanh-a2, deep-tanh not run.",
            "seeds of each pipeline: 8 (the paper: 25)",
            *("a device", "a platform", "torch 2.14.0", "2026-01-02", "5e1f", "as in the paper's tables"),
        ):
            assert part in text
        assert "GENERATED" not in text
        assert "could explain" not in text

    def test_every_table_has_its_columns(self):
        for table in self.written([run for key in FIGURES for run in runs(key, GAINS)]).split("\n\n"):
            if table.startswith("|"):
                rows = [row.replace("\\|", "").count("|") for row in table.splitlines()]
                assert len(set(rows)) == 1, table

    def test_what_is_not_reproduced_has_its_possible_reasons(self):
        text = self.written(runs("1", [-gain for gain in GAINS]))
        assert "| **differs** |" in text
        assert "The paper leaves open, and these could explain" in text

    def test_generated_images_are_named(self):
        assert "**GENERATED IMAGES, NOT CIFAR-10" in self.written(runs("1", GAINS), data_generated=True)

    @pytest.mark.parametrize(("epochs", "value"), [(1, 0.0), (12, math.nan), (1, math.inf), (12, 1e300)])
    def test_any_gradients(self, epochs, value):
        outcomes = runs("3", GAINS, epochs=epochs)
        for run in outcomes:
            for name in NUMBERS:
                if "gradient" in name:
                    run.curves[name][:] = value
        text = self.written(outcomes)
        assert all(f"| {statement.name} " in text for statement in C3.statements)
