"""Reproduce the tables and figures of the paper: each is a study of `studies/library`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.comparison import study
from antigram.studies.compare.texts import compared_text, estimate_text
from antigram.studies.report import Figure, Page, Part, Table, draw_by_arm, write_page

__all__ = ["REPRODUCED", "reproduce", "reproduced_text"]

# Table or figure -> the studies whose results it shows.
REPRODUCED: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("table2", "table3", "table4", "table5", "table6")},
    "fig3": ("table3", "table4", "table5"),
    **{name: (name,) for name in ("fig4", "fig5", "fig6", "fig7", "fig8")},
}
_WORD = "eight"  # as in the paper's figure 5
_TASKS = {"table3": "words", "table4": "emotions", "table5": "sounds"}


def reproduce(
    workspace: Workspace,
    names: Sequence[str],
    *,
    preset: str = "paper",
    corpus_map: Mapping[str, str] | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Run the studies of tables and figures of the paper, and show the paper's numbers beside.

    Args:
        workspace: data, runs and studies are written to it.
        names: names such as ``table3`` or ``fig6``; ``all`` stands for all tables and figures.
        preset: ``paper``, the paper's sizes, or ``small``, minutes on a CPU.
        corpus_map: corpus -> the corpus that stands in for it.
        seeds: trainings of each arm; default: one, as in the paper.
        workers: number of jobs at once; default: one per core.
        dry_run: only list the jobs.
        on_message: called with lines for the user.

    Returns:
        ``study`` and ``report`` (of the only table or figure, else of the folder of all),
        ``stand_ins``, ``jobs``, ``arms`` and ``studies``: name -> what `study` answers; of
        ``fig3`` also ``gains``, and of ``fig5`` ``grad_cam``, a page. With ``dry_run`` ``jobs``,
        ``hours``, ``bytes`` and ``studies``.

    Raises:
        InputError: a name is unknown, a corpus is missing, or a job failed.
        StoredDataError: stored data is damaged.
    """
    wanted = list(REPRODUCED) if "all" in names else list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in REPRODUCED]:
        raise InputError(f"{unknown[0]}: wanted {', '.join(REPRODUCED)} or all")
    if not wanted:
        raise InputError(f"names: wanted one or more of {', '.join(REPRODUCED)}, or all")
    studies: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(each for one in wanted for each in REPRODUCED[one]):
        on_message(f"{name}:")
        studies[name] = study(
            workspace,
            name,
            preset=preset,
            corpus_map=corpus_map,
            seeds=seeds,
            workers=workers,
            dry_run=dry_run,
            on_message=on_message,
        )
    every = list(studies.values())
    if dry_run:
        hours = [each["hours"] for each in every]
        sizes = [each["bytes"] for each in every]
        return {
            "jobs": [job for each in every for job in each["jobs"]],
            "hours": None if None in hours else sum(hours),
            "bytes": None if None in sizes else sum(sizes),
            "studies": studies,
        }
    content: dict[str, Any] = {
        "study": every[0]["study"],
        "report": every[0]["report"],
        "stand_ins": {k: v for each in every for k, v in each["stand_ins"].items()},
        "jobs": {key: sum(each["jobs"][key] for each in every) for key in ("done", "reused")},
        "arms": [{**arm, "study": name} for name, each in studies.items() for arm in each["arms"]],
        "studies": studies,
    }
    if "fig3" in wanted:
        content["gains"] = gains(studies)
        folder = workspace.root / "studies" / f"fig3-{preset}"
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder / "report.html", _gains_page(content))
        content |= {"study": str(folder), "report": str(folder / "report.html")}
    if "fig5" in wanted:
        content["grad_cam"] = _grad_cam(workspace, studies["fig5"], on_message)
    return content


def _grad_cam(
    workspace: Workspace, content: Mapping[str, Any], on_message: OnMessage
) -> str | None:
    """Write Grad-CAM of the study's networks on a test recording; return the page's path.

    The recording is the first of the class ``eight`` in the test split, or of the last class where
    there is no ``eight``.

    Returns:
        Path of the page; None if the recording or a run is not there.
    """
    from antigram.pipeline.features.store import FeatureStore
    from antigram.studies.explaining import explain_file
    from antigram.studies.report.recordings import Recordings

    store = FeatureStore(workspace.store(content["data"]["store"], on_message))
    task = content["data"]["task"]
    classes = store.classes[task]
    wanted = classes.index(_WORD) if _WORD in classes else len(classes) - 1
    rows = [row for row in store.rows("test", task) if store.labels(task)[row] == wanted]
    home = Recordings(store, workspace).home
    ckpts = [workspace.runs / name / "best.pt" for name in content["runs"]]
    if home is None or not rows or not all(path.exists() for path in ckpts):
        on_message("fig5: no Grad-CAM, as the recordings or the runs are not there")
        return None
    audio = home / store.sources[rows[0]].rpartition("#")[0]
    page = Path(content["study"]) / "grad-cam.html"
    explain_file(ckpts, audio, to=page, device="cpu", on_message=on_message)
    on_message(f"fig5: {page}")
    return str(page)


def gains(studies: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean gains of anti-transfer over the baseline, grouped as in the paper's figure 3.

    Args:
        studies: ``table3``, ``table4`` and ``table5`` -> what `study` answers.

    Returns:
        For each group ``group``, ``arms`` (number), ``gain`` and ``published`` (mean gain in points
        here and by the paper's tables; None if the paper has none).
    """
    found: list[tuple[str, str, str, float, float | None]] = []
    for name, task in _TASKS.items():
        if name not in studies:
            continue
        content = studies[name]
        for arm in content["arms"]:
            if not arm["arm"].startswith(("at-", "dual-")) or " " in arm["arm"]:
                continue
            published = content["published"].get(arm["setting"], {})
            paper = None
            if arm["arm"] in published:
                paper = published[arm["arm"]] - published["baseline"]
            kind = "dual" if arm["arm"].startswith("dual-") else "single"
            gain = 100 * arm["difference"]["mean"]
            found.append((task, arm["setting"], kind, gain, paper))
    groups = {
        "all arms": found,
        **{task: [one for one in found if one[0] == task] for task in _TASKS.values()},
        **{
            f"{title} split": [
                one for one in found if one[0] != "words" and (one[1] == "random") == is_random
            ]
            for title, is_random in (("random", True), ("group-wise", False))
        },
        **{f"{kind} AT": [one for one in found if one[2] == kind] for kind in ("single", "dual")},
    }
    return [
        {
            "group": group,
            "arms": len(arms),
            "gain": float(np.mean([one[3] for one in arms])),
            "published": _mean([one[4] for one in arms]),
        }
        for group, arms in groups.items()
        if arms
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _gains_page(content: Mapping[str, Any]) -> Page:
    """Return the report of figure 3."""
    rows = [
        [
            one["group"],
            str(one["arms"]),
            f"{one['gain']:+.2f}",
            "-" if one["published"] is None else f"{one['published']:+.2f}",
        ]
        for one in content["gains"]
    ]
    stand_ins = [
        f"The recordings are those of {used}, which stands in for {corpus}."
        for corpus, used in content["stand_ins"].items()
    ]
    parts: list[Part] = [
        Table(
            caption="Mean gain in test accuracy over the baseline, in points",
            columns=("group", "arms", "here", "in the paper"),
            rows=rows,
        ),
        Figure(
            caption="Mean gain over the baseline, here",
            rows=[
                [draw_by_arm([(one["group"], one["gain"], None, None) for one in content["gains"]])]
            ],
        ),
    ]
    first = content["gains"][0]
    return Page(
        title="Figure 3: mean gains of anti-transfer",
        question="What does anti-transfer gain on average, by task, split and number of teachers?",
        answer=f"Over {first['arms']} arms, {first['gain']:+.2f} points on average. Means over "
        "arms say nothing about chance: the tables have the intervals.",
        text=stand_ins,
        parts=parts,
    )


def reproduced_text(content: Mapping[str, Any], *, dry_run: bool) -> str:
    """Return tables and answers of all studies as text."""
    if dry_run:
        return "\n\n".join(estimate_text(each) for each in content["studies"].values())
    texts = [compared_text(each) for each in content["studies"].values()]
    if "gains" in content:
        rows = [
            f"{one['group']:>18}  {one['gain']:+6.2f}"
            + ("" if one["published"] is None else f"  (paper {one['published']:+.2f})")
            for one in content["gains"]
        ]
        texts.append("\n".join(["mean gain over the baseline, points:", *rows, content["report"]]))
    return "\n\n".join(texts)
