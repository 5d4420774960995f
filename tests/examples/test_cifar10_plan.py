"""Seeds as text, and which of them are trained together by which process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.cifar10 import spans
from examples.cifar10.plan import Job, plan
from tests.oracles.cifar10 import RELU, TANH

SEEDS = st.sets(st.integers(0, 60), min_size=1)


@given(SEEDS)
def test_names_of_spans_are_read_back(seeds):
    assert spans.parse(spans.name(seeds)) == tuple(sorted(seeds))


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("7-7", (7,)), ("4-5,1-2,2-4", (1, 2, 3, 4, 5)), ("0-0", (0,))]
)
def test_spans(text, seeds):
    assert spans.parse(text) == seeds


@pytest.mark.parametrize(
    "text", ["0", "", "-1", "1-", "-", "5-4", "a", "1,2", "1.5", "0-99999", "1-2-3", "999999999999", "²"]
)
def test_wrong_spans(text):
    with pytest.raises(ValueError, match="must be how many, such as 25, or spans, such as 0-9,20-24"):
        spans.parse(text)


def planned(seeds, done=(), begun=(), **options):
    return plan(
        [TANH, RELU],
        seeds,
        lambda pipeline, seed: pipeline == TANH.name and seed in done,
        lambda pipeline: list(begun) if pipeline == TANH.name else [],
        **options,
    )


def test_one_process_trains_all_together():
    assert planned(range(25), together=25) == [[Job(TANH, tuple(range(25))), Job(RELU, tuple(range(25)))]]


def test_groups_of_nearly_the_same_size():
    ((one, two, three, *_),) = planned(range(25), together=10)
    assert [len(job.seeds) for job in (one, two, three)] == [8, 8, 9]


def test_what_was_begun_goes_on_as_it_was():
    jobs = planned(range(6), done={0}, begun=[(1, 2), (8, 9)], together=25)
    assert jobs == [[Job(TANH, (1, 2)), Job(TANH, (3, 4, 5)), Job(RELU, tuple(range(6)))]]


@given(SEEDS, st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 5))
def test_each_seed_that_is_not_finished_is_trained_once(seeds, done, together, world):
    begun = [(0, 1, 2), (7, 30)]
    jobs = planned(sorted(seeds), done, begun, together=together, world=world)
    assert len(jobs) == world
    for pipeline, finished in ((TANH, done), (RELU, set())):
        trained = [seed for part in jobs for job in part if job.pipeline == pipeline for seed in job.seeds]
        assert len(trained) == len(set(trained))
        assert seeds - finished <= set(trained)
        assert not set(trained) - seeds - {seed for group in begun for seed in group}
    fresh = [job for part in jobs for job in part if job.seeds not in begun]
    assert all(len(job.seeds) <= together for job in fresh)
    shares = [sum(len(job.seeds) for job in part if job.pipeline == RELU) for part in jobs]
    assert max(shares) - min(shares) <= 1
