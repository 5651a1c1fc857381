"""Audio corpora become Zarr feature stores. numpy, scipy, soundfile, soxr, zarr; no torch."""

__all__: list[str] = []
