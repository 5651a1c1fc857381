"""Anti-transfer learning on audio, with the teacher's Gram matrices cached on disk.

A student network learns one task while similarity to a *teacher*, a frozen network trained for an
orthogonal task, is penalised (Guizzo, Weyde and Tarroni, 2021). The names below are loaded when
they are first used: ``import antigram`` is quick and imports no torch.

Each command has a function, which takes a `Workspace` and the names of stores, caches and runs in
the workspace: `prepare_corpus`, `describe_corpora`, `download_corpus`, `cache_grams` (and
`estimate_grams`, which builds nothing), `plan`, `train_student`, `evaluate_file`, `predict_files`,
`stream_files`, `explain_file`, `export_model`, `probe`, `list_layers`, `verify_named`, `export`,
`import_`, `track_run`, `status`, `clean` and `run_demo`.
These functions call others that take paths and objects: `prepare`, `build_cache`, `train`,
`evaluate`, `predict`, `probe_run` and `verify`.
`make_folds` and `make_teacher_view` make views of a store for cross-validation.

To add the loss to a training loop of one's own: `AntiTransferLoss` reads a `GramCache`, and
`SegmentDataset` gives the segments of a `FeatureStore` to a DataLoader.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from antigram.cache.building import build_cache
    from antigram.cache.grams import GramCache
    from antigram.model.loss.anti_transfer import AntiTransferLoss
    from antigram.model.loss.at_loss import at_loss
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.evaluate import evaluate_checkpoint as evaluate
    from antigram.model.training.predict import predict
    from antigram.model.training.segments import SegmentDataset
    from antigram.model.training.train import train
    from antigram.pipeline.errors import (
        DamagedError,
        DistributedError,
        InputError,
        StaleError,
        StoredDataError,
    )
    from antigram.pipeline.features.folds import make_folds, make_teacher_view
    from antigram.pipeline.features.preparation import prepare
    from antigram.pipeline.features.store import FeatureStore
    from antigram.pipeline.workspace import Workspace
    from antigram.studies.caching import cache_grams, estimate_grams
    from antigram.studies.compare.comparison import compare, compare_runs, study
    from antigram.studies.demo import run_demo
    from antigram.studies.exchanging import export, import_
    from antigram.studies.explaining import explain_file
    from antigram.studies.export_model import export_model
    from antigram.studies.layers import list_layers
    from antigram.studies.leftovers import clean
    from antigram.studies.plan import plan
    from antigram.studies.predicting import predict_files
    from antigram.studies.preparing import download_corpus, prepare_corpus
    from antigram.studies.probe.command import probe
    from antigram.studies.probe.probing import probe_run
    from antigram.studies.reproduce import reproduce
    from antigram.studies.scoring import evaluate_file
    from antigram.studies.status import describe_corpora, status
    from antigram.studies.streaming import stream_files
    from antigram.studies.tracking import track_run
    from antigram.studies.train_file import train_options
    from antigram.studies.training import train_student
    from antigram.studies.verify import verify, verify_named

    __version__: str

__all__ = [
    "AntiTransferLoss",
    "DamagedError",
    "DistributedError",
    "FeatureStore",
    "GramCache",
    "InputError",
    "SegmentDataset",
    "StaleError",
    "StoredDataError",
    "Workspace",
    "at_loss",
    "build_cache",
    "cache_grams",
    "clean",
    "compare",
    "compare_runs",
    "describe_corpora",
    "download_corpus",
    "estimate_grams",
    "evaluate",
    "evaluate_file",
    "explain_file",
    "export",
    "export_model",
    "import_",
    "list_layers",
    "load_checkpoint",
    "make_folds",
    "make_teacher_view",
    "plan",
    "predict",
    "predict_files",
    "prepare",
    "prepare_corpus",
    "probe",
    "probe_run",
    "reproduce",
    "run_demo",
    "status",
    "stream_files",
    "study",
    "track_run",
    "train",
    "train_options",
    "train_student",
    "verify",
    "verify_named",
]

# Name -> module, and the name there if it is another.
_HOME = {
    "AntiTransferLoss": ".model.loss.anti_transfer",
    "DamagedError": ".pipeline.errors",
    "DistributedError": ".pipeline.errors",
    "FeatureStore": ".pipeline.features.store",
    "GramCache": ".cache.grams",
    "InputError": ".pipeline.errors",
    "SegmentDataset": ".model.training.segments",
    "StaleError": ".pipeline.errors",
    "StoredDataError": ".pipeline.errors",
    "Workspace": ".pipeline.workspace",
    "at_loss": ".model.loss.at_loss",
    "build_cache": ".cache.building",
    "cache_grams": ".studies.caching",
    "clean": ".studies.leftovers",
    "compare": ".studies.compare.comparison",
    "compare_runs": ".studies.compare.comparison",
    "study": ".studies.compare.comparison",
    "describe_corpora": ".studies.status",
    "download_corpus": ".studies.preparing",
    "estimate_grams": ".studies.caching",
    "evaluate": ".model.training.evaluate:evaluate_checkpoint",
    "evaluate_file": ".studies.scoring",
    "explain_file": ".studies.explaining",
    "export": ".studies.exchanging",
    "export_model": ".studies.export_model",
    "import_": ".studies.exchanging",
    "list_layers": ".studies.layers",
    "load_checkpoint": ".model.training.checkpoint",
    "make_folds": ".pipeline.features.folds",
    "make_teacher_view": ".pipeline.features.folds",
    "plan": ".studies.plan",
    "predict": ".model.training.predict",
    "predict_files": ".studies.predicting",
    "prepare": ".pipeline.features.preparation",
    "prepare_corpus": ".studies.preparing",
    "reproduce": ".studies.reproduce",
    "probe": ".studies.probe.command",
    "probe_run": ".studies.probe.probing",
    "run_demo": ".studies.demo",
    "status": ".studies.status",
    "stream_files": ".studies.streaming",
    "train": ".model.training.train",
    "track_run": ".studies.tracking",
    "train_options": ".studies.train_file",
    "train_student": ".studies.training",
    "verify": ".studies.verify",
    "verify_named": ".studies.verify",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("antigram")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _HOME[name].partition(":")
    value = getattr(importlib.import_module(module, __name__), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
