"""Corpora from the network: fetched with their hashes, unpacked safely."""

__all__: list[str] = []
