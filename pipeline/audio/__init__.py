"""Samples: decoding, windows, noise, spectrograms, augmentation."""

__all__: list[str] = []
