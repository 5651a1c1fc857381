"""One run to look at: curves.png and report.html."""

from __future__ import annotations

import base64
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from antigram.model.training.resume import DRAWN
from antigram.model.training.run_files import RunFiles
from antigram.pipeline.errors import InputError, StoredDataError

__all__ = ["draw_run", "write_curves"]

Entry = Mapping[str, Any]
_SPLITS = {"train": "-", "validation": "--"}  # and how their lines look
_CONFUSION = """<div style="overflow-x: auto"><table style="font-size: .75rem">
<tr><th>true</th>{% for name in names %}<th style="writing-mode: vertical-rl; padding: .2rem">
{{- name }}</th>{% endfor %}</tr>
{% for name, cells in rows %}<tr><th>{{ name }}</th>{% for clips, share in cells %}
<td style="padding: .2rem; background: rgba(31,119,180,{{ share }}); color:
 {{ '#fff' if share > 0.6 else '#1a1a1a' }}">{{ clips }}</td>{% endfor %}</tr>
{% endfor %}</table></div>"""


def draw_run(run: Path) -> None:
    """Draw a run that has its result, unless it was drawn before: see `write_curves`."""
    if (files := RunFiles.open(run)) is not None and DRAWN[-1] not in files:
        write_curves(run, files)


def write_curves(run: Path, files: RunFiles | None = None) -> list[Path]:
    """Draw a run's losses and accuracy, and write its page; a run that goes on has one too.

    Args:
        run: folder with metrics.jsonl, config.json and, once it has ended, result.json.
        files: through which a training writes them; else they are opened.

    Returns:
        ``curves.png`` and ``report.html`` there, each written as a whole or not at all.

    Raises:
        InputError: no epoch has ended yet, or it is no run.
        StoredDataError: what the run left is unreadable.

    References:
        Guizzo, Weyde and Tarroni (2021), figure 7.
    """
    from antigram.studies.report import report_page

    metrics, ended = run / "metrics.jsonl", run / "result.json"
    if not (entries := _read(metrics, lines=True) if metrics.is_file() else []):
        raise InputError(
            f"{metrics}: missing or empty; wanted the metrics of at least one epoch. "
            "Wait until the run's first epoch has ended, or name another run."
        )
    (stored,) = _read(run / "config.json")
    (result,) = _read(ended) if ended.is_file() else [{}]
    names = [name for entry in entries for name in _at(entry, "train", "at_by_source") or ()]
    sources = list(dict.fromkeys(names))
    best = result.get("best_epoch") or _best(entries)
    state = f"Finished after {len(entries)} epochs; the best is epoch {best}."
    if not result:
        wanted = _at(stored, "config", "epochs")
        state = f"Not finished: {len(entries)} of up to {wanted} epochs so far, no result.json."
    notes = [str(note) for note in result.get("notes") or ()]
    png = _png(entries, sources, best)
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img alt="curves" style="max-width: 100%" src="{image}">'
    figures = [{"svg": image, "caption": "Losses (AT before beta) and accuracy over the epochs."}]
    if "confusion" in result:
        caption = "Confusion of the test split: true class by row, shaded by share of the row."
        figures.append({"svg": _confusion(result, ended), "caption": caption})
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in _leaves(stored)]
    settings = {"caption": "Settings", "columns": ["name", "value"], "rows": rows}
    tables = [_scores(result)] if result else []
    tables += [_effect(result)] if _at(result, "at_initial") or _at(result, "at_best") else []
    tables += [_epochs(entries, sources, best), settings]
    title = run.absolute().name.encode(errors="replace").decode()
    page = report_page(title=title, text=[state, *notes], tables=tables, figures=figures)
    if (files := files or RunFiles.open(run)) is None:
        raise InputError(f"{run}: no run; wanted the folder of one")
    files.write_bytes("curves.png", png)
    files.write_bytes("report.html", page.encode())
    return [run / "curves.png", run / "report.html"]


def _read(path: Path, *, lines: bool = False) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(part) for part in (text.splitlines() if lines else [text])]
        # Half a surrogate pair is JSON and cannot be written to a page.
        found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    except (OSError, ValueError) as error:
        raise StoredDataError(f"{path}: unreadable ({error}); run `antigram verify`") from None
    if not all(isinstance(part, dict) for part in found):
        raise StoredDataError(f"{path}: wanted JSON objects; run `antigram verify`")
    return list(found)


def _at(value: Any, *keys: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _finite(value: object) -> float:
    """A number to draw; NaN, which is not drawn, for what is none or too large for an axis."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else math.nan


def _shown(value: object, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form if isinstance(value, float) else "")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _best(entries: Sequence[Entry]) -> int | None:
    losses = {entry["epoch"]: _finite(_at(entry, "validation", "loss")) for entry in entries}
    known = [epoch for epoch, loss in losses.items() if math.isfinite(loss)]
    return min(known, key=losses.__getitem__, default=None)


def _epochs(entries: Sequence[Entry], sources: Sequence[str], best: int | None) -> dict[str, Any]:
    keys = [("loss",), ("ce",), ("at",), *(("at_by_source", name) for name in sources)]
    shown = [(split, *key) for key in [*keys, ("accuracy",)] for split in _SPLITS]
    labels = [f"{'at ' if len(key) > 2 else ''}{key[-1]}, {key[0]}" for key in shown]
    timed = {"seconds": "seconds", "data_wait_seconds": "data wait (s)"}
    rows = [
        [f"{entry['epoch']} (best)" if entry["epoch"] == best else entry["epoch"]]
        + [_shown(_at(entry, *key)) for key in [*shown, *((name,) for name in timed)]]
        for entry in entries
    ]
    return {"caption": "Epochs", "columns": ["epoch", *labels, *timed.values()], "rows": rows}


def _scores(result: Entry) -> dict[str, Any]:
    splits = result.get("accuracy", {})
    rows = [(f"accuracy, {split}", _shown(value, ".1%")) for split, value in splits.items()]
    rows += [("chance", _shown(result["chance"], ".1%"))] if "chance" in result else []
    for split in splits:
        if (value := _at(result, "scores", split, "majority")) is not None:
            rows.append((f"always the most frequent class, {split}", _shown(value, ".1%")))
    for key, name, form in (
        ("unweighted_average_recall", "unweighted average recall, test", ".1%"),
        ("seconds_per_step", "seconds per step (median)", ".4g"),
        ("data_wait_fraction", "data wait, share of the time", ".1%"),
        ("peak_rss_mb", "peak memory of the process (MB)", ".0f"),
        ("peak_device_mb", "peak memory of the device (MB)", ".0f"),
    ):
        rows.append((name, _shown(result.get(key), form)))
    return {"caption": "Result", "columns": ["of the best epoch", ""], "rows": rows}


def _effect(result: Entry) -> dict[str, Any]:
    """Does AT act: similarities over validation and ratios of gradients, by layer and teacher."""
    kinds = ("at_initial", "at_best", "gradient_ratio")
    tables = [table for kind in kinds if isinstance(table := _at(result, kind), Mapping)]
    pairs = {(layer, name): None for table in tables for layer in table for name in table[layer]}
    rows = []
    for layer, name in pairs:
        ratios = _at(result, "gradient_ratio", layer, name) or [None, None]
        similarities = [_at(result, kind, layer, name) for kind in kinds[:2]]
        rows.append([layer, name, *(_shown(value) for value in [*similarities, *ratios])])
    columns = ["layer", "teacher", "similarity before the first step", "at the best epoch"]
    columns += ["AT's gradient over the cross-entropy's, first step", "last step"]
    caption = "Does AT act? Over validation; gradients at the best epoch, before beta."
    return {"caption": caption, "columns": columns, "rows": rows}


def _confusion(result: Entry, path: Path) -> str:
    import jinja2

    names, counts = result.get("classes", []), result["confusion"]
    if {len(counts), *map(len, counts)} != {len(names)}:
        raise StoredDataError(f"{path}: confusion is not one row and column a class ({len(names)})")
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = sum(map(_finite, row))
        rows.append((name, [(n, round(_finite(n) / total, 3) if total > 0 else 0) for n in row]))
    return (
        jinja2.Environment(autoescape=True).from_string(_CONFUSION).render(names=names, rows=rows)
    )


def _png(entries: Sequence[Entry], sources: Sequence[str], best: int | None) -> bytes:
    """A panel for each of task loss, AT loss (if there is AT) and accuracy."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, list[tuple[str, ...]]] = {"task loss": [("ce",)]}
    if any(_at(entry, "train", "at") for entry in entries):  # arms without AT have none to show
        panels["AT loss"] = [("at_by_source", name) for name in sources] or [("at",)]
    panels["accuracy"] = [("accuracy",)]
    epochs = [entry["epoch"] for entry in entries]
    with mpl.rc_context({"font.size": 9, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in any script
        figure = Figure(figsize=(4.0 * len(panels), 3.2), dpi=120, layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, lines) in zip(grid, panels.items(), strict=True):
            labels = []
            for number, keys in enumerate(lines):
                for split, style in _SPLITS.items():
                    values = [_finite(_at(entry, split, *keys)) for entry in entries]
                    axis.plot(epochs, values, style, color=f"C{number}", marker=".", label="line")
                    labels.append(" ".join([*keys[1:], split]))
            if best is not None:
                axis.axvline(best, color="0.5", linestyle=":", label="line")
                labels.append(f"best epoch: {best}")
            axis.set(title=title, xlabel="epoch", ylim=(0, 1.02 if title == "accuracy" else None))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            # Given as labels, names with "$" would be read as formulas, those with "_" left out.
            for text, label in zip(axis.legend().get_texts(), labels, strict=True):
                text.set_parse_math(False)
                plain = "".join(c if c.isprintable() else "?" for c in label)
                text.set_text(plain if len(plain) <= 40 else f"{plain[:20]}…{plain[-19:]}")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()
