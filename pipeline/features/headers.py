"""Read the headers of a corpus's recordings, in several processes if it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from antigram.pipeline.audio.decoding import AudioError, AudioInfo, probe
from antigram.pipeline.execution.workers import Workers

__all__ = ["probe_all"]

_HEADERS_A_TASK = 512
_WORTH_WORKERS_S = (
    0.3  # if reading headers takes longer, in seconds, starting processes is worth it
)


def probe_all(
    home: Path, paths: Sequence[str], workers: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, tuple[AudioInfo | str, int]]:
    """Return, for each file, its header or the reason why it is unusable, and its size in bytes.

    The files are in the order of ``paths``, whichever process was done first: a listing's identity
    depends on it.
    """
    headers: dict[str, tuple[AudioInfo | str, int]] = {}
    tasks = [(home, paths[i : i + _HEADERS_A_TASK]) for i in range(0, len(paths), _HEADERS_A_TASK)]

    def add(task: tuple[Path, Sequence[str]], infos: list[tuple[AudioInfo | str, int]]) -> None:
        headers.update(zip(task[1], infos, strict=True))
        if on_progress is not None:
            on_progress(len(headers), len(paths))

    begun = time.perf_counter()
    for number, task in enumerate(tasks):
        add(task, _probe_block(*task))
        left = (time.perf_counter() - begun) * (len(tasks) - number - 1) / (number + 1)
        if workers > 1 and left > _WORTH_WORKERS_S:
            # Twice the cores, as some wait for the disk.
            with Workers(2 * workers, None, None, "antigram.pipeline.features.rendering") as pool:
                for block, infos in pool.run(_probe_block, tasks[number + 1 :]):
                    add(block, infos)
            break
    return {path: headers[path] for path in paths}


def _probe_block(home: Path, paths: Sequence[str]) -> list[tuple[AudioInfo | str, int]]:
    headers: list[tuple[AudioInfo | str, int]] = []
    folder = str(home)
    for path in paths:
        try:
            info = probe(f"{folder}/{path}")  # as text: a Path takes as long as the probing
        except AudioError as error:
            headers.append((str(error), -1))
        else:
            headers.append((info, info.bytes))
    return headers
