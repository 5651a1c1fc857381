"""Where work is done, and how far it is: worker processes, progress."""

__all__: list[str] = []
