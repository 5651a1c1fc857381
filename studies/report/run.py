"""Write the report of one run: curves.png and report.html in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from antigram.model.training.chance import chance
from antigram.model.training.run_files import DRAWN, RunFiles
from antigram.model.training.worth import CONTROL
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.studies.report.curves import (
    SPLITS,
    Curves,
    Entry,
    at_path,
    best_epoch,
    draw_curves,
    teachers,
)
from antigram.studies.report.page import (
    Cell,
    Confusion,
    Figure,
    Fold,
    Page,
    Part,
    Table,
    page_html,
)

__all__ = ["draw_run", "read_metrics", "write_run_report"]

# Rows for losses against a second label, which few runs have.
_MEASURES = ("adversarial", "discriminator_accuracy", "coral", "coral_segments")


def draw_run(run: Path, more: Callable[[], Sequence[Part]] = tuple) -> None:
    """Write the report of a finished run, unless it exists already.

    Args:
        run: as in `write_run_report`.
        more: returns further parts of the page; called only if the page is written.
    """
    if (files := RunFiles.open(run)) is not None and DRAWN[-1] not in files:
        write_run_report(run, files, more=more())


def write_run_report(
    run: Path, files: RunFiles | None = None, *, more: Sequence[Part] = ()
) -> list[Path]:
    """Draw the losses and accuracy of a run, finished or not, and write its page.

    Args:
        run: folder with metrics.jsonl, config.json and, once the run has ended, result.json.
        files: the open files of the run; default: they are opened here.
        more: further parts of the page, after the scores; see `segment_parts`.

    Returns:
        Paths of ``curves.png`` and ``report.html``, each written atomically.

    Raises:
        InputError: no epoch has ended yet, or the folder is no run.
        StoredDataError: a file of the run is unreadable.
    """
    entries = read_metrics(run)
    (stored,) = _read(run / "config.json")
    ended = run / "result.json"
    (result,) = _read(ended) if ended.is_file() else [{}]
    if "confusion" in result and not _square(result):
        classes = len(result.get("classes", []))
        raise StoredDataError(f"{ended}: confusion is not one row and column a class ({classes})")
    best = result.get("best_epoch") or best_epoch(entries)
    curves = draw_curves({"": entries}, {"": best})
    page = _page(run, entries, stored, result, best, curves, more)
    if (files := files or RunFiles.open(run)) is None:
        raise InputError(f"{run}: no run; wanted the folder of one")
    files.write_bytes("curves.png", curves.png)
    files.write_bytes("report.html", page_html(page).encode())
    return [run / "curves.png", run / "report.html"]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the entries of a run's metrics.jsonl.

    Returns:
        One object for each epoch.

    Raises:
        InputError: no epoch has ended yet.
        StoredDataError: the file is unreadable.
    """
    path = run / "metrics.jsonl"
    if not (entries := _read(path, lines=True) if path.is_file() else []):
        raise InputError(
            f"{path}: missing or empty; wanted the metrics of at least one epoch. "
            "Wait until the run's first epoch has ended, or name another run."
        )
    return entries


def _page(
    run: Path,
    entries: Sequence[Entry],
    stored: Entry,
    result: Entry,
    best: int | None,
    curves: Curves,
    more: Sequence[Part],
) -> Page:
    state = f"Finished after {len(entries)} epochs; the best is epoch {best}."
    if not result:
        wanted = at_path(stored, "config", "epochs")
        state = f"Not finished: {len(entries)} of up to {wanted} epochs so far, no result.json."
    answer = _answer(result)
    caption = "Losses (AT before beta) and accuracy over the epochs."
    parts: list[Part] = [Figure(caption=caption, rows=curves.rows)]
    if "confusion" in result:
        caption = "Confusion of the test split: true class by row, predicted by column."
        classes, counts = result["classes"], result["confusion"]
        confusion = Confusion(caption=caption, classes=classes, counts=counts)
        parts += [confusion, _recalls(confusion)]
    if result:
        parts.append(_scores(result))
    if at_path(result, "at_initial") or at_path(result, "at_best"):
        parts.append(_effect(result))
    parts += more
    parts.append(Fold(summary="Epochs", parts=[_epochs(entries, best)]))
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in _leaves(stored)]
    settings = Table(caption="Content of config.json", columns=["name", "value"], rows=rows)
    parts.append(Fold(summary="Settings, versions and fingerprints", parts=[settings]))
    notes = [str(note) for note in result.get("notes") or ()]
    return Page(
        title=run.absolute().name.encode(errors="replace").decode(),
        question=_what_was_run(stored, result),
        answer=answer or state,
        text=[state, *notes] if answer else notes,
        parts=parts,
    )


def _what_was_run(stored: Entry, result: Entry) -> str:
    """Return text such as ``A training for word, mode cached, network vgg11, width 1, seed 0.``."""
    config, arch = stored.get("config"), at_path(stored, "config", "arch")
    parts = {
        "a training for": at_path(config, "task"),
        "mode": at_path(config, "mode"),
        "network": at_path(arch, "name"),
        "width": at_path(arch, "width"),
        "data": result.get("data"),
        "seed": at_path(config, "seed"),
    }
    text = ", ".join(f"{key} {value}" for key, value in parts.items() if value is not None)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _answer(result: Entry) -> str:
    """Return the result in one sentence; an empty string if there is no result."""
    accuracy = at_path(result, "accuracy", "test")
    if not isinstance(accuracy, int | float):
        return ""
    known = at_path(result, "scores", "test") or {}
    beside = {
        "chance": result.get("chance"),
        "always the most frequent class": known.get("majority", result.get("majority")),
        "unweighted average recall": result.get("unweighted_average_recall"),
    }
    texts = [
        f"{name} {_shown(value, '.1%')}" for name, value in beside.items() if value is not None
    ]
    count = f"{known['segments']} segments" if "segments" in known else "segments"
    more = f" ({', '.join(texts)})" if texts else ""
    control = f"{CONTROL[0].upper()}{CONTROL[1:]}" if result.get("shuffle_labels") else ""
    return f"{control}{accuracy:.1%} of the test split's {count} are classified correctly{more}."


def _read(path: Path, *, lines: bool = False) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        objects = [json.loads(part) for part in (text.splitlines() if lines else [text])]
        # JSON allows half a surrogate pair, which cannot be written to a page.
        objects = json.loads(json.dumps(objects, ensure_ascii=False).encode(errors="replace"))
    except (OSError, ValueError) as error:
        raise StoredDataError(f"{path}: unreadable ({error}); run `antigram verify`") from None
    if not all(isinstance(part, dict) for part in objects):
        raise StoredDataError(f"{path}: wanted JSON objects; run `antigram verify`")
    return list(objects)


def _shown(value: object, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form if isinstance(value, float) else "")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _epochs(entries: Sequence[Entry], best: int | None) -> Table:
    keys: list[tuple[str, ...]] = [("loss",), ("ce",), ("at",)]
    keys += [("at_by_source", name) for name in teachers(entries)]
    keys += [(name,) for name in _MEASURES if any(at_path(e, "train", name) for e in entries)]
    shown = [(split, *key) for key in [*keys, ("accuracy",)] for split in SPLITS]
    labels = [f"{'at ' if len(key) > 2 else ''}{key[-1]}, {key[0]}" for key in shown]
    timed = {"seconds": "seconds", "data_wait_seconds": "data wait (s)"}
    rows = [
        [f"{entry['epoch']} (best)" if entry["epoch"] == best else entry["epoch"]]
        + [_shown(at_path(entry, *key)) for key in [*shown, *((name,) for name in timed)]]
        for entry in entries
    ]
    return Table(
        caption="Means over the segments of each epoch",
        columns=["epoch", *labels, *timed.values()],
        rows=rows,
    )


def _recalls(confusion: Confusion) -> Table:
    """Make a table of the recall of each class, and chance."""
    rows: list[tuple[Cell, ...]] = [
        (name, total, _shown(recall, ".1%")) for name, total, recall in confusion.recalls()
    ]
    if rows:
        rows.append(("chance", "", f"{chance(rows):.1%}"))
    columns = ["class", "segments", "recall"]
    return Table(caption="Recall of each class, test split", columns=columns, rows=rows)


def _scores(result: Entry) -> Table:
    splits = result.get("accuracy", {})
    rows = [(f"accuracy, {split}", _shown(value, ".1%")) for split, value in splits.items()]
    rows += [("chance", _shown(result["chance"], ".1%"))] if "chance" in result else []
    for split in splits:
        if (value := at_path(result, "scores", split, "majority")) is not None:
            rows.append((f"always the most frequent class, {split}", _shown(value, ".1%")))
    for key, name, form in (
        ("unweighted_average_recall", "unweighted average recall, test", ".1%"),
        ("seconds_per_step", "seconds per step (median)", ".4g"),
        ("data_wait_fraction", "data wait, share of the time", ".1%"),
        ("peak_rss_mb", "peak memory of the process (MB)", ".0f"),
        ("peak_device_mb", "peak memory of the device (MB)", ".0f"),
    ):
        rows.append((name, _shown(result.get(key), form)))
    return Table(caption="Result", columns=["of the best epoch", ""], rows=rows)


def _effect(result: Entry) -> Table:
    """Make a table of similarities and gradient ratios by layer and teacher: the effect of AT."""
    kinds = ("at_initial", "at_best", "gradient_ratio")
    tables = [table for kind in kinds if isinstance(table := at_path(result, kind), Mapping)]
    pairs = {(layer, name): None for table in tables for layer in table for name in table[layer]}
    rows = []
    for layer, name in pairs:
        ratios = at_path(result, "gradient_ratio", layer, name) or [None, None]
        similarities = [at_path(result, kind, layer, name) for kind in kinds[:2]]
        rows.append([layer, name, *(_shown(value) for value in [*similarities, *ratios])])
    columns = ["layer", "teacher", "similarity before the first step", "at the best epoch"]
    columns += ["AT's gradient over the cross-entropy's, first step", "last step"]
    caption = "Does AT act? Over validation; gradients at the best epoch, before beta."
    return Table(caption=caption, columns=columns, rows=rows)


def _square(result: Entry) -> bool:
    """Return whether the confusion matrix has a row and a column for each class."""
    counts = result["confusion"]
    return {len(counts), *map(len, counts)} == {len(result.get("classes", []))}
