"""Studies: train arms over folds and seeds, and compare them, to see if anti-transfer helps.

``design`` declares a study, ``files`` reads it from TOML, ``data`` prepares the stores and folds,
``jobs`` plans the command lines, ``database`` stores results, ``runner`` runs the jobs, ``results``
selects layers and compares arms, and ``tables`` writes tables and report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antigram.pipeline.errors import InputError

if TYPE_CHECKING:
    from antigram.pipeline.workspace import Workspace

__all__ = ["answered", "run_file"]


def answered(
    workspace: Workspace,
    runs: Sequence[str] = (),
    **asked: Any,  # noqa: ANN401 - as `comparison.compare` declares them
) -> tuple[dict[str, Any], str]:
    """Compare arms on a store, or show existing runs side by side.

    Args:
        workspace: where everything goes.
        runs: names of runs; if there are none, a comparison is run.
        asked: arguments of `comparison.compare`.

    Raises:
        InputError: something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    from antigram.studies.compare.comparison import compare, compare_runs
    from antigram.studies.compare.texts import compared_text, estimate_text, runs_text

    if runs:
        content = compare_runs(workspace, runs)
        return content, runs_text(content)
    if isinstance(layers := asked.get("arms"), str):
        asked["arms"] = tuple(layers.split(","))
    if asked.get("against") is None:
        raise InputError("`against`: name the label that should not matter, such as the speaker")
    content = compare(workspace, **asked)
    return content, (estimate_text if asked.get("dry_run") else compared_text)(content)


def run_file(
    workspace: Workspace,
    file: Path | str,
    **asked: Any,  # noqa: ANN401 - as `comparison.study` declares them
) -> tuple[dict[str, Any], str]:
    """Run a study that a TOML file declares.

    Args:
        workspace: where everything goes.
        file: the file, or the name of one of antigram's studies.
        asked: arguments of `comparison.study`.

    Raises:
        InputError: the file is no study, something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    from antigram.studies.compare.comparison import study
    from antigram.studies.compare.texts import compared_text, estimate_text

    content = study(workspace, file, **asked)
    return content, (estimate_text if asked.get("dry_run") else compared_text)(content)
