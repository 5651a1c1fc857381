"""Several ranks that build one cache, simulated by threads; test_torchrun.py uses torchrun."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from tests.support.files import bytes_of
from tests.support.nets import CPU, VGG16

CLIPS, ROWS = 15, 2  # 8 chunks; the last one has a single clip


class Stopped(Exception):
    pass


class Member:
    """A `DistributedContext` whose ranks are threads."""

    def __init__(self, rank, barrier, found):
        self.rank, self.size = rank, barrier.parties
        self.barrier, self.found = barrier, found

    @property
    def leads(self):
        return self.rank == 0

    def wait(self):
        self.barrier.wait(60)

    def sum(self, values):
        self.found[self.rank] = values.clone()
        self.wait()
        return sum(self.found.values())


@pytest.fixture
def build(store, teacher, monkeypatch):
    monkeypatch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", ROWS)
    plans = plan_layers(store, teacher, TapSpec(arch=VGG16, layers=(3, 5)))

    def run(target, *, size=1, ticks=lambda _: lambda *_: None):
        barrier, found = threading.Barrier(size), {}

        def one(rank):
            try:
                return build_cache(
                    store,
                    teacher,
                    plans,
                    target,
                    made_from={},
                    batch_clips=ROWS,
                    device=CPU,
                    on_progress=ticks(rank),
                    distributed=Member(rank, barrier, found),  # type: ignore[arg-type]
                )
            except Stopped:
                barrier.abort()
                raise

        with ThreadPoolExecutor(size) as threads:
            return [threads.submit(one, rank) for rank in range(size)]

    return run


@pytest.mark.parametrize("size", [2, 3, 30], ids=["two", "three", "more than chunks"])
def test_a_team_builds_the_bytes_that_one_builds(size, build, tmp_path):
    (one,) = build(tmp_path / "one.zarr")
    want = bytes_of(one.result().path)
    every = [job.result() for job in build(tmp_path / "both.zarr", size=size)]
    assert bytes_of(tmp_path / "both.zarr") == want
    assert {each.computed for each in every} == {CLIPS}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("size", [1, 2])
def test_what_a_team_had_done_is_not_done_again_by_one_or_by_a_team(rank, size, build, tmp_path):
    (one,) = build(tmp_path / "one.zarr")

    def stopping(own):
        calls = []

        def on_progress(*_):
            calls.append(0)
            if own == rank and len(calls) == 2:
                raise Stopped

        return on_progress

    jobs = build(tmp_path / "both.zarr", size=2, ticks=stopping)
    with pytest.raises(Stopped):
        jobs[rank].result()
    assert jobs[1 - rank].exception() is not None  # it waited for the other rank, which had failed
    assert not (tmp_path / "both.zarr").exists()
    again = [job.result() for job in build(tmp_path / "both.zarr", size=size)]
    # Left by the rank that was stopped: chunks 4 and 6, or 5 and the single clip of 7.
    assert {each.computed for each in again} == {4 if rank == 0 else 3}
    assert bytes_of(tmp_path / "both.zarr") == bytes_of(one.result().path)
