"""The demo: speech is synthesised and prepared, and a small comparison is run on it."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import antigram
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.workspace import Workspace

__all__ = ["antigram_command", "run_demo"]

_LAYER = 5


def antigram_command() -> list[str]:
    """Return the command that starts this antigram, whether in a checkout or installed."""
    file = Path(antigram.__path__[0], "cli.py")
    if (script := file.resolve()).parent != file.parent.resolve():  # a link, in a checkout
        return [sys.executable, str(script)]
    return [sys.executable, "-P", "-m", "antigram"]  # -P: do not import from the current folder


def run_demo(
    workspace: Workspace,
    report: Path = Path("report.html"),
    *,
    width: int = 4,
    epochs: int = 12,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Prepare synthesised speech, and compare students with and without anti-transfer on it.

    The students learn the word, the teachers the prosody. Each fold tests half of the voices, with
    networks that have never heard these voices.

    Args:
        workspace: stores, caches, runs and the study are written to it.
        report: HTML file that the study's report is written to.
        width: width of all networks; 64 is the published VGG16.
        epochs: epochs of each training.
        seed: seed of the folds.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line for each job.

    Returns:
        What `compare` returns, and ``seconds``; ``report`` is the file.

    Raises:
        InputError: a job failed, or an extra is not installed.
    """
    from antigram.studies.compare.comparison import compare
    from antigram.studies.preparing import prepare_corpus

    begun = time.perf_counter()
    prepared = prepare_corpus(
        workspace, "demo", noise="high", on_progress=on_progress, on_message=on_message
    )
    content = compare(
        workspace,
        data=prepared.store.name,
        task="word",
        against="emotion",
        groups="speaker",
        folds="kfold:speaker:2",
        name="demo",
        at_layers=(_LAYER,),
        seeds=1,
        width=width,
        epochs=epochs,
        patience=epochs,
        seed=seed,
        on_message=on_message,
    )
    shutil.copyfile(content["report"], report)
    return {**content, "report": str(report), "seconds": round(time.perf_counter() - begun, 1)}
