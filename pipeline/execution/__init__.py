"""Worker processes, and the display of progress."""

__all__: list[str] = []
