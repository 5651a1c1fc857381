"""Grams, their codecs, the anti-transfer loss, and the sources of a teacher's rows."""

__all__: list[str] = []
