"""Audio samples: decoding, windows, noise, spectrograms and augmentation."""

__all__: list[str] = []
