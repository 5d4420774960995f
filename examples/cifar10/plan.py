"""Which seeds of which pipeline are trained together, and by which process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from examples.cifar10.pipelines import Pipeline


@dataclass(frozen=True)
class Job:
    """Seeds of one pipeline that are trained together."""

    pipeline: Pipeline
    seeds: tuple[int, ...]


def plan(
    pipelines: Sequence[Pipeline],
    seeds: Sequence[int],
    finished: Callable[[str, int], bool],
    begun: Callable[[str], Sequence[tuple[int, ...]]],
    *,
    together: int,
    world: int = 1,
) -> list[list[Job]]:
    """For each of `world` processes its jobs, in order; together all that is not finished yet.

    What was begun goes on with the same seeds together, whoever began it.  The other seeds of a pipeline are
    divided evenly over the processes, at most `together` in a job.

    Args:
        finished: whether there is a result, by the pipeline's name and seed.
        begun: groups of seeds with a checkpoint, by the pipeline's name.
    """
    jobs: list[list[Job]] = [[] for _ in range(world)]
    for pipeline in pipelines:
        open_ = {seed for seed in seeds if not finished(pipeline.name, seed)}
        for group in begun(pipeline.name):
            if open_.intersection(group):
                min(jobs, key=len).append(Job(pipeline, group))
                open_.difference_update(group)
        for process, part in enumerate(_parts(sorted(open_), world)):
            jobs[process] += [Job(pipeline, group) for group in _groups(part, together)]
    return jobs


def _parts(seeds: Sequence[int], world: int) -> Iterator[Sequence[int]]:
    """`world` parts, whose sizes differ by one at most."""
    ends = [len(seeds) * part // world for part in range(world + 1)]
    return (seeds[first:last] for first, last in pairwise(ends))


def _groups(seeds: Sequence[int], together: int) -> Iterator[tuple[int, ...]]:
    """As few groups as there can be, of nearly the same size."""
    if seeds:
        yield from map(tuple, _parts(seeds, -(-len(seeds) // together)))
