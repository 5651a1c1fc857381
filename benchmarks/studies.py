"""Keep the results of studies: ``python -m benchmarks.studies WORKSPACE NAME [REMARK]`` saves one.

``benchmarks/results/NAME.json`` holds its tables, and ``NAME.sqlite`` every job with its result and
the predictions of each segment, from which the study goes on, or another statistic is made.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from antigram.studies.compare.files import read_study
from antigram.studies.compare.texts import answer_of
from benchmarks.record import RESULTS, save

__all__ = ["results_page"]

STUDIES = ("is-it-invariance", "emotion-without-speaker")  # on the page, in this order
_KEPT = ("title", "question", "stand_ins", "arms", "claims", "chance", "warnings", "data")


def keep(workspace: Path, name: str, remark: str = "") -> Path:
    """Save the tables and the database of a study that was run, or of some of its settings.

    Results of other settings, which were saved before, are kept: a long study is run in parts,
    with more seeds in some settings than in others.

    Args:
        workspace: where it was run.
        name: of the study.
        remark: what a reader must know of this run, such as which recordings stood in for a
            corpus.

    Returns:
        Path of the JSON file.
    """
    folder = workspace / "studies" / name
    content = json.loads((folder / "results.json").read_text())
    with (
        closing(sqlite3.connect(folder / "results.sqlite")) as source,
        closing(sqlite3.connect(RESULTS / f"{name}.sqlite")) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    kept = {key: content[key] for key in _KEPT}
    kept["settings"] = {
        setting: {
            **{key: content["data"][key] for key in ("folds", "seeds")},
            "answer": answer_of({**content, "arms": arms}),
        }
        for setting, arms in _by_setting(content["arms"]).items()
    }
    path = RESULTS / f"{name}.json"
    if path.exists():
        kept = _with_others(kept, json.loads(path.read_text()))
    return save(name, {**kept, "remark": remark})


def _with_others(content: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return results together with those of other settings in an earlier file."""
    new = content["settings"]
    others = {
        key: [each for each in before[key] if each["setting"] not in new]
        for key in ("arms", "claims")
    }
    of_others = {key: value for key, value in before["settings"].items() if key not in new}
    return {
        **content,
        "arms": [*content["arms"], *others["arms"]],
        "claims": [*(c for c in content["claims"] if c["setting"] in new), *others["claims"]],
        "settings": {**new, **of_others},
    }


def _by_setting(arms: list[Any]) -> dict[str, list[Any]]:
    settings: dict[str, list[Any]] = {}
    for arm in arms:
        settings.setdefault(arm["setting"], []).append(arm)
    return settings


def results_page() -> str:
    """Return the text of docs/results.md."""
    parts = [
        "# Results on real data\n\nStudies that were registered before they were run, with "
        "whatever came out. Their files are in `studies/library/`; `python -m benchmarks.studies` "
        "keeps their results, and `python -m benchmarks.tables` writes this page from them. How "
        "the numbers are made: [comparisons](comparisons.md).\n\n"
    ]
    for name in STUDIES:
        path = RESULTS / f"{name}.json"
        parts.append(_study(name, json.loads(path.read_text()) if path.exists() else None))
    return "".join(parts).rstrip() + "\n"


def _study(name: str, content: Mapping[str, Any] | None) -> str:
    study, _ = read_study(name)
    if content is None:
        return f"## {study.title}\n\n`antigram study {name}`: not run yet.\n\n"
    settings = _by_setting(content["arms"])
    ran = {arm["arm"] for arm in content["arms"] if " " not in arm["arm"]}
    missing = [f"the setting {one}" for one in study.settings if one not in settings]
    missing += [f"the arm {one}" for one in study.arms if one not in ran]
    for setting, run in content["settings"].items():
        if run["seeds"] < study.seeds:
            missing.append(f"{study.seeds - run['seeds']} of {study.seeds} seeds of {setting}")
    answers = [f"{setting}: {run['answer']}" for setting, run in content["settings"].items()]
    remark = f" {content['remark']}" if content.get("remark") else ""
    said = f"Not run yet: {', '.join(missing)}. " if missing else ""
    parts = [
        f"## {study.title}\n\n{content['question']}\n\n**{' '.join(answers)}**\n\n"
        f"{said}Width {study.training.width}, {study.training.epochs} epochs.{remark}"
        f"{_probe_text(study.probe)}\n\n"
    ]
    parts += [text for one, arms in settings.items() for text in _setting(one, arms)]
    for claim in content["claims"]:
        outcome = "holds" if claim["holds"] else "does not hold"
        note = f"; {claim['note']}" if claim["note"] else ""
        parts.append(
            f"- **{claim['name']}** ({claim['setting']}): {claim['text']} This {outcome} "
            f"(p = {claim['p_holm']:.3f} after Holm's correction{note}).\n"
        )
    machine = content["machine"]
    parts.append(
        f"\n[{name}.json](../benchmarks/results/{name}.json), "
        f"[{name}.sqlite](../benchmarks/results/{name}.sqlite) (predictions of every segment): "
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}, commit "
        f"{machine['commit'][:10]}.\n\n"
    )
    return "".join(parts)


def _probe_text(probe: str) -> str:
    if not probe:
        return ""
    return (
        f" *Probe*: how often a linear classifier tells the {probe} from the deepest convolutions "
        "([probes](probes.md))."
    )


def _setting(name: str, arms: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of a setting."""
    yield (
        f"### {name}\n\n| arm | runs | accuracy, % (95 %) | difference, points (95 %) | p (Holm) | "
        "verdict | probe, % (95 %) |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for arm in arms:
        found = arm["difference"]
        cells = ["-", "-", "-"]
        if found:
            p = "-" if found["p_holm"] is None else f"{found['p_holm']:.3f}"
            cells = [_interval(found, signed=True), p, found["verdict"]]
        yield (
            f"| {arm['arm']} | {arm['runs']} | {_interval(arm['accuracy'])} | "
            f"{' | '.join(cells)} | {_interval(arm['probe']) if arm['probe'] else '-'} |\n"
        )
    yield "\n"


def _interval(value: Mapping[str, Any], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{100 * value['mean']:{sign}.1f}"
    if value["low"] is None:
        return text
    return f"{text} ({100 * value['low']:{sign}.1f} to {100 * value['high']:{sign}.1f})"


if __name__ == "__main__":
    print(keep(Path(sys.argv[1]), *sys.argv[2:4]))
