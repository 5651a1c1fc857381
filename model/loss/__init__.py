"""Gram matrices, their codecs, the anti-transfer loss, and sources of a teacher's rows."""

__all__: list[str] = []
