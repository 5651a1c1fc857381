"""Anti-transfer learning on audio, with the teacher's Gram matrices cached on disk.

A student network learns one task while similarity to a *teacher*, a frozen network trained for an
orthogonal task, is penalised (Guizzo, Weyde and Tarroni, 2021). The names below are loaded when
they are first used: ``import antigram`` is quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from antigram.cache.build import build_cache
    from antigram.cache.grams import GramCache
    from antigram.model.loss.at_loss import at_loss
    from antigram.model.training.evaluate import evaluate_checkpoint as evaluate
    from antigram.model.training.predict import predict
    from antigram.model.training.train import train
    from antigram.pipeline.errors import (
        DamagedError,
        DistributedError,
        InputError,
        StaleError,
        StoredDataError,
    )
    from antigram.pipeline.features.preparation import prepare
    from antigram.pipeline.features.store import FeatureStore
    from antigram.studies.verify import verify

    __version__: str

__all__ = [
    "DamagedError",
    "DistributedError",
    "FeatureStore",
    "GramCache",
    "InputError",
    "StaleError",
    "StoredDataError",
    "at_loss",
    "build_cache",
    "evaluate",
    "predict",
    "prepare",
    "train",
    "verify",
]

# Name -> module, and the name there if it is another.
_HOME = {
    "DamagedError": ".pipeline.errors",
    "FeatureStore": ".pipeline.features.store",
    "GramCache": ".cache.grams",
    "InputError": ".pipeline.errors",
    "StaleError": ".pipeline.errors",
    "StoredDataError": ".pipeline.errors",
    "DistributedError": ".pipeline.errors",
    "at_loss": ".model.loss.at_loss",
    "build_cache": ".cache.build",
    "evaluate": ".model.training.evaluate:evaluate_checkpoint",
    "predict": ".model.training.predict",
    "prepare": ".pipeline.features.preparation",
    "train": ".model.training.train",
    "verify": ".studies.verify",
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
