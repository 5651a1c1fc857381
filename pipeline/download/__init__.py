"""Download corpora: fetch archives, check their hashes, extract them safely."""

__all__: list[str] = []
