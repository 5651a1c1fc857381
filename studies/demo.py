"""The demo: run the commands a user would type, each in its own process, and write a report.

Each arm has its own process, so that its peak memory can be measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import antigram
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.workspace import Workspace
from antigram.studies.report import (
    Figure,
    Fold,
    Page,
    Table,
    draw_curves,
    read_metrics,
    write_page,
)

__all__ = ["antigram_command", "demo_page", "run_demo", "table"]

LAYER = "5"


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
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Prepare a store, train a teacher, build its cache, train all arms, and write the report.

    Args:
        workspace: stores, caches and runs are written to it.
        report: HTML file to write.
        width: width of all networks; 64 is the published VGG16.
        epochs: maximum number of epochs of each training.
        seed: seed of all arms.
        on_message: called with each command before it is run.

    Returns:
        Fields of ``demo --json``.

    Raises:
        InputError: a command failed; it printed the reason.
    """
    begun = time.perf_counter()
    stages: list[dict[str, Any]] = []

    command = antigram_command()

    def run(*arguments: str) -> dict[str, Any]:
        shown = "antigram " + " ".join(arguments)
        on_message(f"\n$ {shown}")
        start = time.perf_counter()
        line = [*command, "--workspace", str(workspace.root), "--json", *arguments]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise InputError(f"demo: `{shown}` ended with exit code {done.returncode}, see above")
        stages.append({"command": shown, "seconds": round(time.perf_counter() - start, 1)})
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    store = run("prepare", "demo", "--noise", "high", "--split", "by:speaker")
    data = store["name"]
    net = workspace.root / "demo" / "emotion.pt"
    net.parent.mkdir(parents=True, exist_ok=True)
    common = ["--data", data, "--epochs", str(epochs), "--seed", str(seed)]
    shape = ["--arch", "vgg16", "--width", str(width)]
    emotion = run(
        *["train", "--mode", "baseline", "--task", "emotion", *common, *shape],
        *["--save", str(net)],
    )
    grams = run("cache-grams", "--ckpt", str(net), "--layer", LAYER, "--data", data)
    teacher = ["--ckpt", str(net)]
    arms = {
        "baseline": run("train", "--mode", "baseline", *common, *shape),
        "wi": run("train", "--mode", "wi", *common, *teacher),
        "online": run("train", "--mode", "online", *common, *teacher, "--layer", LAYER),
        "cached": run("train", "--mode", "cached", *common, "--cache", grams["name"]),
    }
    cached_layer = grams["layers"][LAYER]
    content = {
        "report": str(report),
        "store": {key: store[key] for key in ("name", "clips", "shape", "fingerprint")},
        "emotion": {key: emotion[key] for key in ("accuracy", "chance", "majority")},
        "arms": arms,
        "cache_bytes": cached_layer["bytes_per_clip"] * grams["clips"],
        "cache": grams,
        "stages": stages,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_page(report, demo_page(content, store["classes"], width))
    return content


def demo_page(content: dict[str, Any], classes: dict[str, list[str]], width: int) -> Page:
    """Return the report of the demo.

    Args:
        content: what `run_demo` returns.
        classes: names of the classes of the store, by label.
        width: width of the networks.
    """
    clips, arms = content["store"]["clips"], content["arms"]
    columns, rows = _rows(content)
    curves = draw_curves(
        {name: read_metrics(Path(arm["run"])) for name, arm in arms.items()},
        {name: arm["best_epoch"] for name, arm in arms.items()},
    )
    accuracy = {name: f"{arm['accuracy']['test']:.1%}" for name, arm in arms.items()}
    layer = content["cache"]["layers"][LAYER]
    return Page(
        title="antigram demo: digits in any prosody",
        question="Does anti-transfer from prosody help to recognise digits of voices that were "
        "never heard in training?",
        answer=f"{accuracy['cached']} of {clips['test']} test segments are classified correctly "
        f"with cached anti-transfer, {accuracy['baseline']} without it; with one seed, a "
        "difference of a few segments means nothing.",
        text=[
            f"{sum(clips.values())} spoken digits, synthesised on this machine in "
            f"{len(classes['speaker'])} voices and {len(classes['emotion'])} prosodies, with noise "
            "at 0 to 10 dB. Test voices are in no other split. The teacher knows the prosody; "
            "anti-transfer keeps the student away from what it hears at convolution layer "
            f"{LAYER}. The networks have {width} channels where VGG16 has 64.",
            f"The cache takes {content['cache_bytes'] / 1e6:.2f} MB, {layer['bytes_per_clip']} "
            "bytes a segment.",
        ],
        parts=[
            Table(caption="The arms, same seed", columns=columns, rows=rows),
            Figure(
                caption="Losses and accuracy over the epochs. AT loss: the squared cosine, before "
                "beta.",
                rows=curves.rows,
            ),
            Fold(
                summary="How it was run",
                parts=[
                    Table(
                        caption="Commands",
                        columns=["command", "seconds"],
                        rows=[[stage["command"], stage["seconds"]] for stage in content["stages"]],
                    )
                ],
            ),
        ],
    )


def _rows(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns = [
        "arm",
        "test accuracy",
        "chance",
        "majority",
        "UAR",
        "s/step",
        "clips/s",
        "peak RSS MB",
        "epochs",
    ]
    rows = [
        [
            name,
            f"{result['accuracy']['test']:.3f}",
            f"{result['chance']:.3f}",
            f"{result['majority']:.3f}",
            f"{result['unweighted_average_recall']:.3f}",
            f"{result['seconds_per_step']:.4f}",
            f"{result['clips_per_second']:.0f}",
            f"{result['peak_rss_mb']:.0f}",
            str(result["epochs"]),
        ]
        for name, result in content["arms"].items()
    ]
    return columns, rows


def table(content: dict[str, Any]) -> str:
    """Return the result of the demo as a text table."""
    columns, rows = _rows(content)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    every = [columns, *rows]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in every]
    stages = "\n".join(f"{s['seconds']:7.1f} s  {s['command']}" for s in content["stages"])
    size = f"cache: {content['cache_bytes'] / 1e6:.2f} MB, layer {LAYER}"
    return "\n".join(
        ["", *lines, "", size, stages, f"{content['seconds']:7.1f} s  in all", content["report"]]
    )
