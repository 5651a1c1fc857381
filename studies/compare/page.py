"""Make the HTML report of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from antigram.studies.compare.texts import (
    COLUMNS,
    Fields,
    answer_of,
    arm_row,
    by_setting,
    claim_text,
    ends,
    points,
)
from antigram.studies.report import (
    Figure,
    Fold,
    Page,
    Part,
    Table,
    draw_by_arm,
    draw_by_number,
    draw_curves,
    draw_probes,
)

__all__ = ["study_page"]

_EXPLAINED = (
    "Differences are means over groups of the accuracy with the same seeds on the same folds. "
    "Intervals allow for groups and for the noise of training; p is corrected over the arms "
    "(Holm). Better and worse mean p below .05; equivalent means that the interval is within half "
    "a point.",
    "A layer, weight or trial is selected by validation within each fold and seed. A teacher of "
    "the fold heard only the training recordings of that fold.",
)


def study_page(
    content: Fields,
    commands: Sequence[tuple[str, float]],
    curves: Mapping[str, Sequence[Fields]],
    more: Mapping[str, Sequence[Part]],
) -> Page:
    """Return the report; arguments are those of `write_tables`."""
    parts: list[Part] = []
    for name, arms in by_setting(content):
        parts += [*_setting_parts(name, arms, content), *more.get(name, ())]
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
                    claim_text(claim),
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
    text = [f"Warning: {line.rstrip('.')}." for line in content["warnings"]]
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
    columns, rows = list(COLUMNS), [arm_row(arm) for arm in main]
    published = content["published"].get(name, {})
    if published:
        columns.append("in the paper")
        for row, arm in zip(rows, main, strict=True):
            row.append(f"{published[arm['arm']]:.1f}" if arm["arm"] in published else "-")
    if any(arm["probe"] for arm in main):
        columns += ["probe", "95 %"]
        for row, arm in zip(rows, main, strict=True):
            probe = arm["probe"]
            row.extend([points(probe["mean"]), ends(probe)] if probe else ["-", "-"])
    caption = f"{where}accuracy and difference from the baseline, in points, by group{beside}"
    parts: list[Part] = [Table(caption=caption, columns=columns, rows=rows)]
    parts += _figures(where, main, single)
    if probed := [(arm["arm"], *_drawn(arm["probe"])) for arm in main if arm["probe"]]:
        label = content["settings"]["probe"]
        caption = (
            f"{where}accuracy of a linear probe of {label} at the deepest convolution, with its "
            "95 % interval; line: the first arm"
        )
        parts.append(Figure(caption=caption, rows=[[draw_probes(probed, label)]]))
    about = [
        [
            arm["arm"],
            arm["about"] or "-",
            "yes" if arm["needs_labels"] else "no",
            points(arm["train_accuracy"]),
        ]
        for arm in main
    ]
    parts.append(
        Table(
            caption=f"{where}the arms, whether they need the label of the student's own "
            "recordings, and accuracy in training",
            columns=("arm", "what it is", "needs labels", "training"),
            rows=about,
        )
    )
    parts.append(_costs(where, main))
    if single:
        table = Table(
            caption=f"{where}each layer and weight for itself",
            columns=COLUMNS,
            rows=[arm_row(arm) for arm in single],
        )
        summary = f"{where}each layer and weight for itself (exploratory, not corrected)"
        parts.append(Fold(summary=summary, parts=[table]))
    return parts


def _costs(where: str, arms: Sequence[Fields]) -> Table:
    """Return the table of time, memory and disk space."""
    return Table(
        caption=f"{where}cost of each arm: all its trainings, and before them the teachers and "
        "caches that they need (what arms share is counted for each)",
        columns=(
            *("arm", "trainings, s", "before, s", "peak memory, MB", "of the device, MB"),
            *("runs, MB", "caches, MB"),
        ),
        rows=[
            [
                arm["arm"],
                *(_rounded(arm[key]) for key in ("seconds", "before_seconds")),
                *(_rounded(arm[key]) for key in ("peak_rss_mb", "peak_device_mb")),
                *(_rounded(arm[key], 1e6, ".1f") for key in ("run_bytes", "cache_bytes")),
            ]
            for arm in arms
        ],
    )


def _rounded(value: float | None, unit: float = 1, form: str = ".0f") -> str:
    return "-" if value is None else format(value / unit, form)


def _figures(where: str, main: Sequence[Fields], single: Sequence[Fields]) -> list[Part]:
    """Return the differences of all arms as a figure, and those by layer and by weight."""
    pictures = []
    if compared := [arm for arm in main if arm["difference"]]:
        pictures.append(draw_by_arm([(arm["arm"], *_drawn(arm["difference"])) for arm in compared]))
    for what, pattern in (("layer", r"(\S+) (\d+)"), ("beta", r"(\S+) \d*b(\S+)")):
        lines: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
        for arm in single:
            if arm["difference"] and (match := re.fullmatch(pattern, arm["arm"])):
                lines.setdefault(match[1], []).append((float(match[2]), *_drawn(arm["difference"])))
        if lines:
            pictures.append(draw_by_number(lines, what))
    if not pictures:
        return []
    caption = (
        f"{where}difference from the baseline with its 95 % interval; grey: within half a point"
    )
    return [Figure(caption=caption, rows=[[picture] for picture in pictures])]


def _drawn(interval: Fields) -> tuple[float, float | None, float | None]:
    """Return a mean and the ends of its interval, in points."""
    low, mean, high = (interval[key] for key in ("low", "mean", "high"))
    return 100 * mean, None if low is None else 100 * low, None if high is None else 100 * high
