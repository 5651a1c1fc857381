"""Feature stores: define the recipe, list and split a corpus, prepare and read a store."""

__all__: list[str] = []
