"""The teacher's Gram matrices on disk: exact, small, checked, never stale.

`build` writes a cache, `grams` reads one, `key` says what makes one stale.
"""

__all__: list[str] = []
