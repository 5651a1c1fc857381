"""Types of the callbacks that long-running functions accept."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OnMessage", "OnProgress"]

# Called with the name of a stage, the units done and the units in total.
OnProgress = Callable[[str, int, int], None]
# Called with a line for the user.
OnMessage = Callable[[str], None]
