"""Arrays on disk: checksums, atomic writes, journals, manifests, mapped reading, exchange.

Knows nothing of audio, corpora, features or Grams.
"""

__all__: list[str] = []
