"""Add up what the trainings of an arm took: time, peak memory and disk space."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from antigram.studies.compare.database import Database
from antigram.studies.compare.jobs import Job

__all__ = ["Cost", "cost_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the trainings of one arm took. A value is None if it was not measured for all of them.

    Attributes:
        seconds: time of all trainings of the arm.
        before_seconds: time of the teachers, caches and earlier trainings that these need. What
            several arms share is counted in full for each.
        peak_rss_mb: largest peak memory of a training's process, in MB.
        peak_device_mb: largest peak memory on the device, in MB; None on a CPU.
        run_bytes: disk space of the trainings' runs.
        cache_bytes: disk space of the caches that the trainings read.
    """

    seconds: float
    before_seconds: float
    peak_rss_mb: float | None
    peak_device_mb: float | None
    run_bytes: int | None
    cache_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of an entry of ``arms``."""
        rounded = {
            "seconds": round(self.seconds, 1),
            "before_seconds": round(self.before_seconds, 1),
        }
        return {**asdict(self), **rounded}


def cost_of(trained: Collection[str], jobs: Sequence[Job], database: Database) -> Cost:
    """Return what trainings took.

    Args:
        trained: keys of the trainings, which must be done.
        jobs: all jobs of the study.
        database: database with the jobs' results.
    """
    by_key = {job.key: job for job in jobs}
    needed: dict[str, None] = {}
    waiting = list(trained)
    while waiting:
        for key in by_key[waiting.pop()].needs:
            if key not in needed and key not in trained:
                needed[key] = None
                waiting.append(key)
    results = [database.result(key) for key in trained]
    before = {key: database.result(key) for key in needed}
    caches = [result for key, (result, _) in before.items() if by_key[key].kind == "cache"]
    return Cost(
        seconds=sum(seconds for _, seconds in results),
        before_seconds=sum((seconds for _, seconds in before.values()), 0.0),
        peak_rss_mb=_most(result.get("peak_rss_mb") for result, _ in results),
        peak_device_mb=_most(result.get("peak_device_mb") for result, _ in results),
        run_bytes=_total(result.get("disk_bytes") for result, _ in results),
        cache_bytes=_total(map(_cache_bytes, caches)),
    )


def _cache_bytes(result: Mapping[str, Any]) -> int | None:
    """Return the disk space of a cache, from its number of rows if it was not measured."""
    if "disk_bytes" in result or "layers" not in result:
        return result.get("disk_bytes")
    of_row = sum(layer["bytes_per_clip"] for layer in result["layers"].values())
    return int(result["clips"] * of_row)


def _most(values: Iterable[float | None]) -> float | None:
    """Return the largest value; None if one of them is not known."""
    known = list(values)
    return None if None in known else max((v for v in known if v is not None), default=None)


def _total(values: Iterable[int | None]) -> int | None:
    """Return the sum of values; None if one of them is not known."""
    known = list(values)
    return None if None in known else sum(v for v in known if v is not None)
