"""The demo: the commands that a user would type, each in a process of its own, and a report.

A process for each arm, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import InputError
from antigram.studies.report import curves_svg, read_metrics, write_report

__all__ = ["run_demo", "table"]

LAYER = "5"


def run_demo(
    command: Sequence[str],
    workspace: Path,
    report: Path,
    *,
    width: int,
    epochs: int,
    seed: int,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Prepare, train the orthogonal net, cache, train all arms, and write the report.

    Args:
        command: how antigram is called.
        workspace: where everything goes.
        report: HTML file to write.
        width: of the nets; 64 is the real VGG16.
        epochs: at most, of every training.
        seed: the same for all arms.
        on_message: told what is run.

    Returns:
        Fields of ``demo --json``.

    Raises:
        InputError: a command failed; it has said why itself.
    """
    begun = time.perf_counter()
    stages: list[dict[str, Any]] = []

    def antigram(*arguments: str) -> dict[str, Any]:
        shown = "antigram " + " ".join(arguments)
        on_message(f"\n$ {shown}")
        start = time.perf_counter()
        line = [*command, "--workspace", str(workspace), "--json", *arguments]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise InputError(f"demo: `{shown}` ended with exit code {done.returncode}, see above")
        stages.append({"command": shown, "seconds": round(time.perf_counter() - start, 1)})
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    store = antigram("prepare", "demo", "--noise", "high", "--split", "by:speaker")
    data = store["name"]
    net = workspace / "demo" / "emotion.pt"
    net.parent.mkdir(parents=True, exist_ok=True)
    common = ["--data", data, "--epochs", str(epochs), "--seed", str(seed)]
    shape = ["--arch", "vgg16", "--width", str(width)]
    emotion = antigram(
        *["train", "--mode", "baseline", "--task", "emotion", *common, *shape],
        *["--save", str(net)],
    )
    grams = antigram("cache-grams", "--ckpt", str(net), "--layer", LAYER, "--data", data)
    teacher = ["--ckpt", str(net)]
    arms = {
        "baseline": antigram("train", "--mode", "baseline", *common, *shape),
        "wi": antigram("train", "--mode", "wi", *common, *teacher),
        "online": antigram("train", "--mode", "online", *common, *teacher, "--layer", LAYER),
        "cached": antigram("train", "--mode", "cached", *common, "--cache", grams["name"]),
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
    columns, rows = _rows(content)
    write_report(
        report,
        title="antigram demo: which digit, whatever the prosody",
        text=[
            f"{sum(store['clips'].values())} spoken digits, synthesised on this machine in "
            f"{len(store['classes']['speaker'])} voices and {len(store['classes']['emotion'])} "
            "prosodies, with noise at 0 to 10 dB. Test voices are in no other split. The frozen "
            "net knows the prosody; anti-transfer keeps the digit net away from it at convolution "
            f"layer {LAYER}.",
            f"One seed, {store['clips']['test']} test clips, nets of {width} channels where the "
            "real VGG16 has 64: differences of a few clips mean nothing here.",
            f"The cache: {content['cache_bytes'] / 1e6:.2f} MB, "
            f"{cached_layer['bytes_per_clip']} bytes a clip.",
        ],
        tables=[
            {"caption": "The arms, same seed", "columns": columns, "rows": rows},
            {
                "caption": "What was run",
                "columns": ["command", "seconds"],
                "rows": [[stage["command"], stage["seconds"]] for stage in stages],
            },
        ],
        figures=[
            {
                "caption": "Losses over the epochs. AT loss: the squared cosine, before beta.",
                "svg": curves_svg(
                    {name: read_metrics(Path(result["run"])) for name, result in arms.items()}
                ),
            }
        ],
    )
    return content


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
    """The demo's result as text."""
    columns, rows = _rows(content)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    every = [columns, *rows]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in every]
    stages = "\n".join(f"{s['seconds']:7.1f} s  {s['command']}" for s in content["stages"])
    size = f"cache: {content['cache_bytes'] / 1e6:.2f} MB, layer {LAYER}"
    return "\n".join(
        ["", *lines, "", size, stages, f"{content['seconds']:7.1f} s  in all", content["report"]]
    )
