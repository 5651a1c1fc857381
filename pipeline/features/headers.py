"""Headers of a corpus's recordings, read by several processes where that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from antigram.pipeline.audio.decoding import AudioError, AudioInfo, probe
from antigram.pipeline.execution.workers import Workers

__all__ = ["probe_all"]

_HEADERS_A_TASK = 512
_WORTH_WORKERS_S = 0.3  # of reading headers: less is done before the processes have started


def probe_all(
    home: Path, paths: Sequence[str], workers: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, tuple[AudioInfo | str, int]]:
    """Header of each file, or the reason why it is none; and its size."""
    found: dict[str, tuple[AudioInfo | str, int]] = {}
    tasks = [(home, paths[i : i + _HEADERS_A_TASK]) for i in range(0, len(paths), _HEADERS_A_TASK)]

    def keep(task: tuple[Path, Sequence[str]], infos: list[tuple[AudioInfo | str, int]]) -> None:
        found.update(zip(task[1], infos, strict=True))
        if on_progress is not None:
            on_progress(len(found), len(paths))

    begun = time.perf_counter()
    for number, task in enumerate(tasks):
        keep(task, _probe_block(*task))
        left = (time.perf_counter() - begun) * (len(tasks) - number - 1) / (number + 1)
        if workers > 1 and left > _WORTH_WORKERS_S:
            # Twice the cores, as some wait for the disk.
            with Workers(2 * workers, None, None, "antigram.pipeline.features.rendering") as pool:
                for done, infos in pool.run(_probe_block, tasks[number + 1 :]):
                    keep(done, infos)
            break
    return found


def _probe_block(home: Path, paths: Sequence[str]) -> list[tuple[AudioInfo | str, int]]:
    found: list[tuple[AudioInfo | str, int]] = []
    folder = str(home)
    for path in paths:
        try:
            info = probe(f"{folder}/{path}")  # as text: a Path takes as long as the probing
        except AudioError as error:
            found.append((str(error), -1))
        else:
            found.append((info, info.bytes))
    return found
