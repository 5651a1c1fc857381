"""Arrays on disk: backends, checksums, atomic writes, journals, manifests, mapped arrays, exchange.

Nothing here depends on audio, corpora, features or Gram matrices.
"""

__all__: list[str] = []
