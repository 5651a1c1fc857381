"""Caches of the teacher's Gram matrices on disk.

`build` writes a cache, `grams` reads one, and `key` defines when one is stale.
"""

__all__: list[str] = []
