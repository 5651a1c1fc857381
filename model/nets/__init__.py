"""Networks, their layers and the digests of what a layer depends on."""

__all__: list[str] = []
