"""Gram matrices of the frozen network, on disk: exact, small, checked, never stale.

Imports `pipeline` and `model`. `build` writes a cache, `grams` reads one, `key` says what makes one
stale, `verify` reads every byte.
"""

__all__: list[str] = []
