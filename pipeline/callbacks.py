"""What long work calls while it runs."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OnProgress"]

# Called with a stage's name, how much of it is done, and how much there is.
OnProgress = Callable[[str, int, int], None]
