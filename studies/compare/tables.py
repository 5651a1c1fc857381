"""Write the results of a comparison as text, CSV, LaTeX and an HTML report."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.table import plain_cell
from antigram.studies.compare.results import AT_CHANCE
from antigram.studies.report import (
    Figure,
    Fold,
    Page,
    Part,
    Table,
    draw_by_arm,
    draw_by_number,
    draw_curves,
    write_page,
)

__all__ = ["answer_of", "compared_text", "estimate_text", "runs_text", "write_tables"]

Fields = Mapping[str, Any]
_COLUMNS = ("arm", "layer", "runs", "accuracy", "95 %", "difference", "95 %", "p (Holm)", "verdict")
_EXPLAINED = (
    "Differences are means over groups of the accuracy with the same seeds on the same folds. "
    "Intervals allow for groups and for the noise of training; p is corrected over the arms "
    "(Holm). Better and worse mean p below .05; equivalent means that the interval is within half "
    "a point.",
    "A layer, weight or trial is selected by validation within each fold and seed. A teacher of "
    "the fold heard only the training recordings of that fold.",
)
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

    Without an arm ``at``, the first arm after the baseline is reported. A study with several
    settings has an answer for each setting.
    """
    settings = _by_setting(content)
    if len(settings) == 1:
        return _answer(content["arms"], content)
    return " ".join(f"{name}: {_answer(arms, content)}" for name, arms in settings)


def _answer(arms: Sequence[Fields], content: Fields) -> str:
    """Return the answer of one setting."""
    if len(arms) == 1:
        accuracy = arms[0]["accuracy"]
        return f"The baseline is right on {_points(accuracy['mean'])} % ({_ends(accuracy)})."
    arm = next((a for a in arms if a["arm"] == "at"), arms[1])
    found, data = arm["difference"], content["data"]
    if found["note"] == AT_CHANCE:
        return (
            f"Nothing can be said: the baseline's accuracy, "
            f"{_points(arms[0]['accuracy']['mean'])} %, is not above chance, "
            f"{_points(content['chance'])} %. Train longer, on more recordings, or with wider "
            "networks."
        )
    size = (
        f"{_points(found['mean'], signed=True)} points of accuracy (95 % interval "
        f"{_ends(found, signed=True)}) over {found['groups']} groups ({data['groups']}), "
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
    """Return the tables of all settings, the claims and the answer, as text."""
    lines: list[str] = []
    for name, arms in _by_setting(content):
        rows = [list(_COLUMNS), *(_row(arm) for arm in arms)]
        if name:
            lines.append(f"{name}:")
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines += ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    lines += [f"warning: {line}" for line in content["warnings"]]
    lines += [f"stand-in: {used} for {corpus}" for corpus, used in content["stand_ins"].items()]
    lines += [_claim_text(claim) for claim in content["claims"]]
    return "\n".join([*lines, answer_of(content), str(content["report"])])


def _by_setting(content: Fields) -> list[tuple[str, list[Fields]]]:
    """Return the name and the arms of each setting."""
    settings: dict[str, list[Fields]] = {}
    for arm in content["arms"]:
        settings.setdefault(arm["setting"], []).append(arm)
    return list(settings.items())


def _claim_text(claim: Fields) -> str:
    """Return a line with a claim and its result."""
    said = "holds" if claim["holds"] else "does not hold"
    note = f" ({claim['note']})" if claim["note"] else ""
    differences = "; ".join(
        f"{_points(one['mean'], signed=True)} ({_ends(one, signed=True)}) over {other}"
        for other, one in claim["differences"].items()
    )
    where = f", {claim['setting']}" if claim["setting"] else ""
    return (
        f"{claim['name']}{where}: {claim['text']} This {said}, p = {claim['p_holm']:.3f} "
        f"(Holm){note}. {differences}".rstrip(". ")
        + "."
    )


def estimate_text(content: Fields) -> str:
    """Return the jobs and the estimated cost of a comparison, as text."""
    lines = [job["command"] for job in content["jobs"]]
    count = f"{len(lines)} jobs"
    if content["hours"] is None:
        lines.append(f"{count}; no estimate: {content['estimated_from']}")
        return "\n".join(lines)
    lines.append(
        f"{count}; at most {content['hours']:g} hours are left ({content['estimated_from']}), "
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


def write_tables(
    folder: Path,
    content: Fields,
    commands: Sequence[tuple[str, float]],
    curves: Mapping[str, Sequence[Fields]] | None = None,
) -> None:
    """Write results.json, results.csv, results.tex and report.html.

    Args:
        folder: folder of the study.
        content: answer of the study.
        commands: command line of each job, and the seconds that it took.
        curves: name of a training -> the entries of its metrics.jsonl.
    """
    write_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    rows = [[arm["setting"], *_row(arm)] for arm in content["arms"]]
    columns = ["setting", *_COLUMNS]
    if not any(row[0] for row in rows):
        columns, rows = columns[1:], [row[1:] for row in rows]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([plain_cell(cell) for cell in row] for row in [columns, *rows])
    write_text(folder / "results.csv", text.getvalue())
    body = "".join(
        " & ".join(cell.translate(_SPECIAL) for cell in row) + " \\\\\n" for row in [columns, *rows]
    )
    write_text(
        folder / "results.tex",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n{body}\\end{{tabular}}\n",
    )
    write_page(folder / "report.html", _page(content, commands, curves or {}))


def _page(
    content: Fields,
    commands: Sequence[tuple[str, float]],
    curves: Mapping[str, Sequence[Fields]],
) -> Page:
    """Return the report."""
    parts: list[Part] = []
    for name, arms in _by_setting(content):
        parts += _setting_parts(name, arms, content)
    if content["claims"]:
        table = Table(
            caption="Claims, declared before the study was run",
            columns=("claim", "setting", "p (Holm)", "holds", "what was found"),
            rows=[
                [
                    claim["name"],
                    claim["setting"] or "-",
                    f"{claim['p_holm']:.3f}",
                    "yes" if claim["holds"] else "no",
                    _claim_text(claim),
                ]
                for claim in content["claims"]
            ],
        )
        parts.append(table)
    if curves:
        drawn = draw_curves(curves)
        figure = Figure(
            caption="Losses and accuracy over the epochs, of the first fold and seed. AT loss: the "
            "similarity, before beta.",
            rows=drawn.rows,
        )
        parts.append(Fold(summary="Losses by epoch", parts=[figure]))
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
    text = [f"Warning: {line}." for line in content["warnings"]]
    text += [
        f"The recordings are those of {used}, which stands in for {corpus}."
        for corpus, used in content["stand_ins"].items()
    ]
    return Page(
        title=content["title"],
        question=content["question"],
        answer=answer_of(content),
        text=[*text, *content["notes"], *_EXPLAINED],
        parts=parts,
    )


def _setting_parts(name: str, arms: Sequence[Fields], content: Fields) -> list[Part]:
    """Return the tables of one setting."""
    where = f"{name}: " if name else ""
    stand_in = ", ".join(f"{used} for {c}" for c, used in content["stand_ins"].items())
    beside = f" (stand-ins: {stand_in})" if stand_in else ""
    main = [arm for arm in arms if " " not in arm["arm"]]
    single = [arm for arm in arms if " " in arm["arm"]]
    columns, rows = list(_COLUMNS), [_row(arm) for arm in main]
    published = content["published"].get(name, {})
    if published:
        columns.append("in the paper")
        for row, arm in zip(rows, main, strict=True):
            row.append(f"{published[arm['arm']]:.1f}" if arm["arm"] in published else "-")
    if any(arm["probe"] for arm in main):
        columns += ["probe", "95 %"]
        for row, arm in zip(rows, main, strict=True):
            probe = arm["probe"]
            row.extend([_points(probe["mean"]), _ends(probe)] if probe else ["-", "-"])
    caption = f"{where}accuracy and difference from the baseline, in points, by group{beside}"
    parts: list[Part] = [Table(caption=caption, columns=columns, rows=rows)]
    parts += _figures(where, main, single)
    about = [
        [
            arm["arm"],
            arm["about"] or "-",
            "yes" if arm["needs_labels"] else "no",
            _points(arm["train_accuracy"]),
            f"{arm['seconds']:.0f}",
        ]
        for arm in main
    ]
    parts.append(
        Table(
            caption=f"{where}the arms, whether they need the label of the student's own "
            "recordings, accuracy in training, and the seconds that their trainings took",
            columns=("arm", "what it is", "needs labels", "training", "seconds"),
            rows=about,
        )
    )
    if single:
        table = Table(
            caption=f"{where}each layer and weight for itself",
            columns=_COLUMNS,
            rows=[_row(arm) for arm in single],
        )
        summary = f"{where}each layer and weight for itself (exploratory, not corrected)"
        parts.append(Fold(summary=summary, parts=[table]))
    return parts


def _figures(where: str, main: Sequence[Fields], single: Sequence[Fields]) -> list[Part]:
    """Return the differences of all arms as a figure, and those by layer and by weight."""
    pictures = []
    if compared := [arm for arm in main if arm["difference"]]:
        pictures.append(draw_by_arm([(arm["arm"], *_drawn(arm)) for arm in compared]))
    for what, pattern in (("layer", r"(\S+) (\d+)"), ("beta", r"(\S+) \d*b(\S+)")):
        lines: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
        for arm in single:
            if arm["difference"] and (match := re.fullmatch(pattern, arm["arm"])):
                lines.setdefault(match[1], []).append((float(match[2]), *_drawn(arm)))
        if lines:
            pictures.append(draw_by_number(lines, what))
    if not pictures:
        return []
    caption = (
        f"{where}difference from the baseline with its 95 % interval; grey: within half a point"
    )
    return [Figure(caption=caption, rows=[[picture] for picture in pictures])]


def _drawn(arm: Fields) -> tuple[float, float | None, float | None]:
    """Return the difference and the ends of its interval, in points."""
    low, mean, high = (arm["difference"][key] for key in ("low", "mean", "high"))
    return 100 * mean, None if low is None else 100 * low, None if high is None else 100 * high
