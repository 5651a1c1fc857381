"""The values that settings of a training and of a cache may take. No torch.

The command line offers them, the library checks against them.
"""

from __future__ import annotations

__all__ = [
    "AGGREGATIONS",
    "CODECS",
    "DTYPES",
    "LOSSES",
    "MODES",
    "PRECISIONS",
    "SIMILARITIES",
    "TAPS",
]

MODES = ("baseline", "wi", "frozen", "online", "cached")
TAPS = ("relu", "conv", "released")
AGGREGATIONS = ("gram", "mean", "sum", "max", "compmul")
SIMILARITIES = ("cos2", "mse-sigmoid")
LOSSES = ("paper", "released")
PRECISIONS = ("32", "tf32", "bf16")
CODECS = ("packed", "factor", "lowrank", "map")
DTYPES = ("float16", "float32")
