"""Hand a run, finished or not, to a tracker of experiments: MLflow or Weights & Biases.

Settings, the metrics of each epoch and the result are sent, as they stand in the run's files. A
training knows nothing of trackers, so none can slow it down or stop it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.workspace import Workspace
from antigram.studies.report.run import read_metrics

__all__ = ["Tracker", "track_run"]

Tracker = Literal["mlflow", "wandb"]
_MOST_PARAMS = 100  # that MLflow takes in one call
_NOT_SCALARS = ("epoch", "confusion", "classes", "environment", "layers", "notes", "views")


def track_run(
    workspace: Workspace,
    run: str,
    *,
    to: Tracker,
    project: str = "antigram",
) -> dict[str, Any]:
    """Send settings, metrics and result of a run to MLflow or Weights & Biases.

    The tracker's own environment decides where to, and as whom: ``MLFLOW_TRACKING_URI``,
    ``WANDB_MODE``, ``WANDB_API_KEY`` and so on. Each call makes a new run there. The step of a
    metric is the number of its epoch.

    Args:
        workspace: holds the run.
        run: name of the run, or its path.
        to: ``mlflow`` or ``wandb``.
        project: MLflow's experiment, or the project of Weights & Biases.

    Returns:
        ``run``, ``to``, ``project``, ``epochs`` sent, ``finished``, and ``id`` of the run there.

    Raises:
        InputError: the package is not installed, there is no such run, no epoch of it has ended, or
            the tracker failed.
        StoredDataError: the run is damaged.
    """
    check_choice("`to`", to, get_args(Tracker))
    folder = workspace.named(workspace.runs, run, "run")
    if importlib.util.find_spec(to) is None:
        raise InputError(
            f"`to={to}` needs {to}, which is not installed: pip install 'antigram[{to}]'"
        )
    entries = read_metrics(folder)
    config = {"features": "", "config": {}, **_document(folder / "config.json")}
    result = _document(folder / "result.json") if (folder / "result.json").exists() else {}
    settings = dict(_leaves(config["config"])) | {"features": config["features"]}
    steps = [(int(entry["epoch"]), dict(_numbers(entry))) for entry in entries]
    final = {f"result/{name}": value for name, value in _numbers(result)}
    try:
        package = importlib.import_module(to)
        number = _SENDERS[to](package, project, folder.name, settings, steps, final)
    except Exception as error:  # noqa: BLE001 - what a server or a login can go wrong with
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"`to={to}`: {to} failed: {why}") from None
    return {
        "run": str(folder),
        "to": to,
        "project": project,
        "epochs": len(entries),
        "finished": bool(result),
        "id": number,
    }


def _mlflow(
    mlflow: Any,  # noqa: ANN401 - the package itself
    project: str,
    name: str,
    settings: Mapping[str, Any],
    steps: Sequence[tuple[int, Mapping[str, float]]],
    final: Mapping[str, float],
) -> str:
    """Send a run to MLflow; return its id."""
    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=name) as active:
        params = [(_plain(key), value) for key, value in settings.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            mlflow.log_params(dict(params[start : start + _MOST_PARAMS]))
        for epoch, numbers in steps:
            mlflow.log_metrics({_plain(k): v for k, v in numbers.items()}, step=epoch)
        if final:
            mlflow.log_metrics({_plain(k): v for k, v in final.items()}, step=steps[-1][0])
        return str(active.info.run_id)


def _wandb(
    wandb: Any,  # noqa: ANN401 - the package itself
    project: str,
    name: str,
    settings: Mapping[str, Any],
    steps: Sequence[tuple[int, Mapping[str, float]]],
    final: Mapping[str, float],
) -> str:
    """Send a run to Weights & Biases; return its id."""
    active = wandb.init(project=project, name=name, config=dict(settings))
    try:
        for epoch, numbers in steps:
            active.log(dict(numbers), step=epoch)
        active.summary.update(dict(final))
    finally:
        active.finish()
    return str(active.id)


_SENDERS: dict[Tracker, Callable[..., str]] = {"mlflow": _mlflow, "wandb": _wandb}


def _plain(key: str) -> str:
    """Return a name with characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII)


def _document(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}")
    except (OSError, ValueError, TypeError) as error:
        raise StoredDataError(f"{path}: unreadable ({error}). Restore it.") from None
    return content


def _numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an entry or a result, such as ``train/ce`` or ``accuracy/test``."""
    kept = {key: value for key, value in tree.items() if key not in _NOT_SCALARS}
    for name, value in _leaves(kept):
        pair = isinstance(value, list) and len(value) == 2  # of the first and the last step
        named = {f"{name}/first": value[0], f"{name}/last": value[1]} if pair else {name: value}
        for key, number in named.items():
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield key, float(number)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
