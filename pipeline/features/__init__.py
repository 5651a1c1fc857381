"""Feature stores: recipe, listing, split, rendering, preparation, and reading them."""

__all__: list[str] = []
