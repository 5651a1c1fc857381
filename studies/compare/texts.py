"""Answers, tables and claims of a comparison as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from antigram.studies.compare.results import AT_CHANCE

__all__ = [
    "COLUMNS",
    "Fields",
    "answer_of",
    "arm_row",
    "by_setting",
    "claim_text",
    "compared_text",
    "ends",
    "estimate_text",
    "points",
    "runs_text",
]

Fields = Mapping[str, Any]
COLUMNS = ("arm", "layer", "runs", "accuracy", "95 %", "difference", "95 %", "p (Holm)", "verdict")


def points(value: float | None, *, signed: bool = False) -> str:
    """Return a share in points of accuracy, or a hyphen."""
    if value is None:
        return "-"
    return f"{100 * value:{'+' if signed else ''}.1f}"


def ends(interval: Fields, *, signed: bool = False) -> str:
    """Return the ends of an interval in points, or a hyphen."""
    if interval["low"] is None:
        return "-"
    ends = (points(interval[end], signed=signed) for end in ("low", "high"))
    return " to ".join(ends)


def arm_row(arm: Fields) -> list[str]:
    """Return the cells of an arm, one for each of `COLUMNS`."""
    row = [arm["arm"], arm["layer"] or "-", str(arm["runs"])]
    row += [points(arm["accuracy"]["mean"]), ends(arm["accuracy"])]
    if (found := arm["difference"]) is None:
        return [*row, "-", "-", "-", "-"]
    p = "-" if found["p_holm"] is None else f"{found['p_holm']:.3f}"
    return [
        *row,
        *(points(found["mean"], signed=True), ends(found, signed=True)),
        *(p, found["verdict"]),
    ]


def answer_of(content: Fields) -> str:
    """Return whether anti-transfer beat the baseline, in a sentence or two.

    Without an arm ``at``, the first arm after the baseline is reported. A study with several
    settings has an answer for each setting.
    """
    settings = by_setting(content)
    if len(settings) == 1:
        return _answer(content["arms"], content)
    return " ".join(f"{name}: {_answer(arms, content)}" for name, arms in settings)


def _answer(arms: Sequence[Fields], content: Fields) -> str:
    """Return the answer of one setting."""
    if len(arms) == 1:
        accuracy = arms[0]["accuracy"]
        return f"The baseline is right on {points(accuracy['mean'])} % ({ends(accuracy)})."
    arm = next((a for a in arms if a["arm"] == "at"), arms[1])
    found, data = arm["difference"], content["data"]
    if found["note"] == AT_CHANCE:
        return (
            f"Nothing can be said: the baseline's accuracy, "
            f"{points(arms[0]['accuracy']['mean'])} %, is not above chance, "
            f"{points(content['chance'])} %. Train longer, on more recordings, or with wider "
            "networks."
        )
    size = (
        f"{points(found['mean'], signed=True)} points of accuracy (95 % interval "
        f"{ends(found, signed=True)}) over {found['groups']} groups ({data['groups']}), "
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
    for name, arms in by_setting(content):
        rows = [list(COLUMNS), *(arm_row(arm) for arm in arms)]
        if name:
            lines.append(f"{name}:")
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines += ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    lines += [f"warning: {line}" for line in content["warnings"]]
    lines += [f"stand-in: {used} for {corpus}" for corpus, used in content["stand_ins"].items()]
    lines += [claim_text(claim) for claim in content["claims"]]
    return "\n".join([*lines, answer_of(content), str(content["report"])])


def by_setting(content: Fields) -> list[tuple[str, list[Fields]]]:
    """Return the name and the arms of each setting."""
    settings: dict[str, list[Fields]] = {}
    for arm in content["arms"]:
        settings.setdefault(arm["setting"], []).append(arm)
    return list(settings.items())


def claim_text(claim: Fields) -> str:
    """Return a line with a claim and its result."""
    said = "holds" if claim["holds"] else "does not hold"
    note = f" ({claim['note']})" if claim["note"] else ""
    differences = "; ".join(
        f"{points(one['mean'], signed=True)} ({ends(one, signed=True)}) over {other}"
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
