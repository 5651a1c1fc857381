"""Probe a run of the workspace, and format the answer as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.workspace import Workspace

__all__ = ["probe", "probed_text"]


def probe(
    workspace: Workspace,
    run: str | Path,
    *,
    task: str,
    layers: Sequence[int | str] = (),
    data: str | None = None,
    groups: str | None = None,
    split: str | None = None,
    parts: int = 5,
    compare: str | None = None,
    seed: int = 0,
    device: str = "auto",
    arch: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Measure how much of a label the layers of a run hold.

    Args:
        workspace: holds runs and stores.
        run: name of a run, or path of a run or of a checkpoint.
        task: label that is probed.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all`` (default).
        data: name of the store; default: the one that the run was trained on; for a checkpoint's
            file the only one, or the one prepared last.
        groups: label whose classes no two parts share: see `probe_run`.
        split: ``train``, ``validation``, ``test`` or ``all``: see `probe_run`.
        parts: number of parts.
        compare: another run or checkpoint, for CKA by layer.
        seed: seed of the parts, of untrained networks and of shuffled labels.
        device: device of the networks, such as ``cpu`` or ``auto``.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_progress: called with the stage, what is done, and the total.
        on_message: called with a line of text for each default that was chosen.

    Returns:
        The fields of ``probe --json``.

    Raises:
        InputError: as for `probe_run`; or there is no such run or store.
        StoredDataError: the run or the store is damaged, or the run's store has changed.
    """
    from antigram.studies.probe.classifiers import check_installed

    check_installed()

    from antigram.model.nets.own import import_own
    from antigram.model.training.device import named_device
    from antigram.studies.probe.opening import named_network, store_of
    from antigram.studies.probe.probing import probe_run

    import_own(arch)
    path = named_network(workspace, run)
    other = None if compare is None else named_network(workspace, compare)
    if data is not None:
        store = workspace.store(data, on_message)
    else:
        store = store_of(workspace, path, on_message)
    return probe_run(
        path,
        store,
        task,
        layers or ("all",),
        groups=groups,
        split=split,
        parts=parts,
        compare=other,
        seed=seed,
        device=named_device(device),
        on_progress=on_progress,
        on_message=on_message,
    )


_COLUMNS = (
    ("linear", "linear"),
    ("mlp", "mlp"),
    ("untrained", "untrained"),
    ("raw_input", "raw input"),
    ("majority", "majority"),
    ("chance", "chance"),
    ("selectivity", "selectivity"),
)


def probed_text(content: Mapping[str, Any]) -> str:
    """Format the answer of ``probe``: a line for each layer, and what it was measured on."""
    lines = [
        f"{content['run']}, trained for {content['trained_for']}, probed for {content['task']}: "
        f"{len(content['classes'])} classes, {content['segments']} segments "
        f"({'all splits' if content['split'] == 'all' else content['split']}), "
        f"{content['parts']} parts that share no {content['groups']}"
    ]
    header = ["layer", *(name for _, name in _COLUMNS), "95 % interval", "bits"]
    header += ["CKA", "debiased"] if content["compared_with"] else []
    rows = [header]
    for number, layer in content["layers"].items():
        ends = layer["interval"]
        row = [number, *(_share(layer[key]) for key, _ in _COLUMNS)]
        row += [f"{_share(ends['low'])} to {_share(ends['high'])}"]
        row += [f"{layer['code_length']:.2f} of {layer['uniform_code_length']:.2f}"]
        if layer["cka"]:
            row += [_share(layer["cka"]["biased"]), _share(layer["cka"]["debiased"])]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
