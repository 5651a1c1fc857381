"""Networks, their layers, and digests of the weights that a layer depends on."""

__all__: list[str] = []
