"""Evaluate a checkpoint on a store of the workspace."""

from __future__ import annotations

from pathlib import Path

from antigram.model.nets.own import import_own
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.device import named_device
from antigram.model.training.evaluate import Scores, evaluate_checkpoint
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.choices import Split
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace

__all__ = ["evaluate_file"]


def evaluate_file(
    workspace: Workspace,
    ckpt: Path,
    *,
    data: str | None = None,
    split: Split = "test",
    task: str | None = None,
    device: str = "auto",
    arch: str | None = None,
    on_message: OnMessage = lambda _: None,
) -> Scores:
    """Score a checkpoint on a split of a store.

    Args:
        workspace: holds the store.
        ckpt: file of the checkpoint.
        data: name of the store; default: the only one, or the one prepared last.
        split: ``train``, ``validation`` or ``test``.
        task: label of the store to score; default: the task of the checkpoint.
        device: device of the network, such as ``cpu`` or ``auto``.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_message: called with a line of text for each default that was chosen.

    Returns:
        Scores of segments and of recordings.

    Raises:
        InputError: an argument is missing or does not fit, or the split is empty.
        StoredDataError: the store or the checkpoint is damaged.
    """
    import_own(arch)
    checkpoint = load_checkpoint(ckpt)
    store = FeatureStore(workspace.store(data, on_message))
    scores = evaluate_checkpoint(
        checkpoint, store, split, task=task, device=named_device(device), on_message=on_message
    )
    if not scores.segments.count:
        raise InputError(f"{store.path}: no segment in the {split} split")
    return scores
