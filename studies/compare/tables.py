"""The table of a comparison as text, CSV and LaTeX, and its page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.table import plain_cell
from antigram.studies.compare.results import AT_CHANCE
from antigram.studies.report import Fold, Page, Table, write_page

__all__ = ["answer_of", "compared_text", "estimate_text", "runs_text", "write_tables"]

Fields = Mapping[str, Any]
_COLUMNS = ("arm", "layer", "runs", "accuracy", "95 %", "difference", "95 %", "p (Holm)", "verdict")
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})


def _points(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:{'+' if signed else ''}.1f}"


def _ends(interval: Fields, *, signed: bool = False) -> str:
    if interval["low"] is None:
        return "-"
    ends = (_points(interval[end], signed=signed) for end in ("low", "high"))
    return " to ".join(ends)


def _row(arm: Fields) -> list[str]:
    row = [arm["arm"], arm["layer"] or "-", str(arm["runs"])]
    row += [_points(arm["accuracy"]["mean"]), _ends(arm["accuracy"])]
    if (found := arm["difference"]) is None:
        return [*row, "-", "-", "-", "-"]
    p = "-" if found["p_holm"] is None else f"{found['p_holm']:.3f}"
    return [
        *row,
        *(_points(found["mean"], signed=True), _ends(found, signed=True)),
        *(p, found["verdict"]),
    ]


def answer_of(content: Fields) -> str:
    """Return whether anti-transfer beat the baseline, in a sentence or two.

    Without an arm ``at``, the first arm after the baseline is reported.
    """
    arm = next((a for a in content["arms"] if a["arm"] == "at"), content["arms"][1])
    found, data = arm["difference"], content["data"]
    if found["note"] == AT_CHANCE:
        return (
            f"Nothing can be said: the baseline's accuracy, "
            f"{_points(content['arms'][0]['accuracy']['mean'])} %, is not above chance, "
            f"{_points(content['chance'])} %. Train longer, on more recordings, or with wider "
            "networks."
        )
    size = (
        f"{_points(found['mean'], signed=True)} points of accuracy (95 % interval "
        f"{_ends(found, signed=True)}) over {found['groups']} groups ({data['against']}), "
        f"{data['folds']} folds and {data['seeds']} seeds"
    )
    name = "Anti-transfer" if arm["arm"] == "at" else arm["arm"]
    match found["verdict"]:
        case "better":
            return f"Yes: {name} was better than the baseline by {size}."
        case "worse":
            return f"No: {name} was worse than the baseline, by {size}."
        case "equivalent":
            return f"No difference that matters: {name} is within half a point, {size}."
    note = f" It {found['note']}." if found["note"] else ""
    return f"Undecided: {name} made a difference of {size}.{note}"


def compared_text(content: Fields) -> str:
    """Return the table and the answer as text."""
    rows = [list(_COLUMNS), *(_row(arm) for arm in content["arms"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    warned = [f"warning: {line}" for line in content["warnings"]]
    return "\n".join([*lines, "", *warned, answer_of(content), str(content["report"])])


def estimate_text(content: Fields) -> str:
    """Return what a comparison would run and take, as text."""
    lines = [job["command"] for job in content["jobs"]]
    lines.append(
        f"{len(lines)} jobs; at most {content['hours']:g} hours ({content['estimated_from']}), "
        f"{content['bytes'] / 1e9:.2f} GB of caches"
    )
    return "\n".join(lines)


def runs_text(content: Fields) -> str:
    """Return runs side by side, as text."""
    columns = ("run", "mode", "layers", "seed", "validation", "test", "chance", "epochs")
    rows = [list(columns)]
    for run in content["runs"]:
        accuracy = run["accuracy"] or {}
        shares = [accuracy.get("validation"), accuracy.get("test"), run["chance"]]
        rows.append(
            [
                *(run["name"], str(run["mode"])),
                ",".join(map(str, run["layers"] or [])) or "-",
                str(run["seed"]),
                *("-" if share is None else f"{share:.3f}" for share in shares),
                str(run["epochs"]),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ("  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)


def write_tables(folder: Path, content: Fields, commands: Sequence[tuple[str, float]]) -> None:
    """Write results.csv, results.tex and report.html.

    Args:
        folder: folder of the study.
        content: answer of the comparison.
        commands: command line of each job, and the seconds that it took.
    """
    rows = [_row(arm) for arm in content["arms"]]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([plain_cell(cell) for cell in row] for row in [_COLUMNS, *rows])
    write_text(folder / "results.csv", text.getvalue())
    body = "".join(
        " & ".join(cell.translate(_SPECIAL) for cell in row) + " \\\\\n"
        for row in [_COLUMNS, *rows]
    )
    write_text(
        folder / "results.tex",
        f"\\begin{{tabular}}{{l{'r' * (len(_COLUMNS) - 1)}}}\n{body}\\end{{tabular}}\n",
    )
    data = content["data"]
    primary = [row for row, arm in zip(rows, content["arms"], strict=True) if " " not in arm["arm"]]
    single = [row for row, arm in zip(rows, content["arms"], strict=True) if " " in arm["arm"]]
    about = [[arm["arm"], arm["about"], f"{arm['seconds']:.0f}"] for arm in content["arms"]]
    parts: list[Any] = [
        Table(
            caption="Accuracy and difference from the baseline, in points, by group",
            columns=_COLUMNS,
            rows=primary,
        ),
        Table(
            caption="The arms, and the seconds that their trainings took",
            columns=("arm", "what it is", "seconds"),
            rows=about,
        ),
    ]
    if single:
        table = Table(caption="Each layer for itself", columns=_COLUMNS, rows=single)
        parts.append(
            Fold(summary="Each layer for itself (exploratory, not corrected)", parts=[table])
        )
    ran = Table(
        caption="Commands",
        columns=("command", "seconds"),
        rows=[[line, f"{seconds:.0f}"] for line, seconds in commands],
    )
    settings = Table(
        caption="Settings",
        columns=("name", "value"),
        rows=[[key, str(value)] for key, value in content["settings"].items()],
    )
    parts.append(Fold(summary="How it was run", parts=[ran, settings]))
    text_of = [
        "Differences are means over groups of the accuracy with the same seeds on the same folds. "
        "Intervals allow for groups and for the noise of training; p is corrected over the arms "
        "(Holm). Better and worse mean p below .05; equivalent means that the interval is within "
        "half a point.",
        "A layer is picked by validation within each fold and seed. Each teacher heard only the "
        "training recordings of its fold.",
    ]
    page = Page(
        title=f"Does anti-transfer help? {data['task']} against {data['against']}",
        question=(
            f"Does a student that learns {data['task']} become better on unseen recordings of "
            f"{data['store']} when it is kept unlike a teacher that knows {data['against']}?"
        ),
        answer=answer_of(content),
        text=[*(f"Warning: {line}." for line in content["warnings"]), *text_of],
        parts=parts,
    )
    write_page(folder / "report.html", page)
