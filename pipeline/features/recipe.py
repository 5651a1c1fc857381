"""The recipe of a feature store: everything that its contents depend on, and nothing else.

Paths, numbers of workers and limits on rejects are arguments of functions instead. As fields they
would change the fingerprint of a store although its contents are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from antigram.pipeline.audio.augmentation import Levels
from antigram.pipeline.choices import (
    Dtype,
    Features,
    LastWindow,
    Longer,
    Noise,
    SnrMode,
    Window,
    check_choices,
    choices_of,
)
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.designs import DESIGNS, Design, is_design
from antigram.pipeline.storage.hashing import digest

__all__ = ["LEAST_DB", "VERSION", "Recipe"]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (float, int),
    "bool": bool,
    "Mapping[str, str]": Mapping,
}
_MOST_BYTES = 1 << 32  # largest size of a segment; an hour at 48 kHz takes a third of it
LEAST_DB = -100.0  # of an amplitude of 1, in features in dB; what is less counts as silence
_N_MELS = 40  # as usual in speech recognition; the default window has bins for up to 57
_LATER = {"within": "", "features": "magnitude", "n_mels": 0}
# Fields that decide what a number of the features means.
_SPECTRUM = ("sample_rate", "n_fft", "hop", "window", "features", "bands")
# Change this when the code computes other values from the same fields.
VERSION = "prepare/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the rows of a feature store are made from a corpus.

    Attributes:
        corpus: name of the adapter.
        options: the adapter's own options in canonical form (``{"words": "digits"}``).
        seconds: length of a segment.
        overlap: share of a window that the next one repeats, in [0, 1).
        longer: how a longer recording is stored: ``cut`` or ``segment``.
        noise: ``none``, ``low`` (20 to 40 dB) or ``high`` (0 to 10 dB).
        snr_mode: ``exact``, or ``released``: half of the nominal SNR, as in the paper's code.
        noise_files: SHA-256 over names and bytes of the noise recordings; empty without noise.
        split: ``random``, ``official``, ``by:LABEL``, ``kfold:LABEL:K`` or
            ``confounded:LABEL:OTHER``; with the last two, the store has the split of fold 0.
        seed: seed of the split, the noise and the choice of recordings.
        limit_per_class: largest number of recordings in a class of the main label; 0: no limit.
        limit: largest number of recordings in total, chosen at random; 0: no limit.
        balance: whether to reduce all classes to the size of the smallest.
        last_window: last window of a segmented recording: ``pad`` it with zeros, or move it back to
            ``end`` with the recording.
        dtype: dtype of the stored features.
        sample_rate: sample rate in Hz.
        n_fft: length of window and transform, in samples.
        hop: samples between frames.
        window: name of a periodic window in scipy.signal.
        features: ``magnitude`` (of the STFT), ``mel`` (power in mel bands), or either in dB:
            ``log-magnitude``, ``log-mel``.
        n_mels: number of mel bands; 0: 40, or none without mel bands.
        resampler: name and quality of the resampler.
        version: version of the code that computes the features.
        within: fingerprint of a store, of which only the training recordings are taken; empty: all
            recordings are taken.
    """

    corpus: str
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    overlap: float = 0.0
    longer: Longer = "cut"
    noise: Noise = "none"
    snr_mode: SnrMode = "exact"
    noise_files: str = ""
    split: str = "random"
    seed: int = 0
    limit_per_class: int = 0
    limit: int = 0
    balance: bool = False
    last_window: LastWindow = "pad"
    dtype: Dtype = "float32"
    sample_rate: int = 16_000
    n_fft: int = 256
    hop: int = 128
    window: Window = "hamming"
    resampler: str = "soxr-HQ"
    version: str = VERSION
    within: str = ""
    features: Features = "magnitude"
    n_mels: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        self._check_types()
        if not 0 < self.seconds <= 3600:
            raise InputError(
                f"`seconds` is {self.seconds}, the length of a segment; wanted: above 0, up to 3600"
            )
        if round(self.seconds * self.sample_rate) < self.n_fft:
            raise InputError(
                f"`seconds` is {self.seconds}: shorter than one STFT window of "
                f"{self.n_fft / self.sample_rate:g} s. Give a longer one."
            )
        if not 0 <= self.overlap < 1:
            raise InputError(f"`overlap` is {self.overlap}; wanted: at least 0, under 1")
        if self.n_fft % 2:
            raise InputError(f"`n_fft` is {self.n_fft}; wanted: an even number of samples")
        if self.n_mels and not self.is_mel:
            raise InputError(f"`n_mels` is {self.n_mels}: goes with `features=mel` or `log-mel`")
        for number in (self.limit_per_class, self.limit):
            if number < 0:
                raise InputError(f"a limit is {number}; wanted: 0 (all recordings) or more")
        if is_design(self.split):
            Design.parse(self.split)
        elif self.split not in ("random", "official") and not self.split.startswith("by:"):
            raise InputError(
                f"split is {self.split!r}; wanted: random, official, by:LABEL, {DESIGNS}"
            )
        self._check_size()
        if self.is_mel:
            from antigram.pipeline.features.spectra import mel_filters  # loads scipy

            mel_filters(self.n_fft, self.sample_rate, self.bands)

    def _check_types(self) -> None:
        """Raise if a field has the wrong type, or a value with which a library would crash."""
        for f in fields(self):
            if f.name in choices_of(Recipe):
                continue
            value, kind = getattr(self, f.name), _TYPES[str(f.type)]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"{f.name} is {value!r}; wanted {str(f.type).partition('[')[0]}")
        if not all(isinstance(t, str) for pair in self.options.items() for t in pair):
            raise InputError(f"options are {dict(self.options)!r}; wanted text only")
        for name, least, most in (
            ("sample_rate", 1_000, 768_000),
            ("n_fft", 2, 1 << 16),
            ("hop", 1, self.n_fft),
            ("n_mels", 0, 1 << 12),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"`{name}` is {getattr(self, name)}; wanted {least} to {most}")

    def _check_size(self) -> None:
        """Raise if a segment does not fit into memory."""
        frames, bins = self.shape
        if 4 * frames * bins > _MOST_BYTES:
            raise InputError(
                f"seconds is {self.seconds}: a segment of {frames} x {bins} numbers takes "
                f"{4e-9 * frames * bins:.0f} GB; wanted up to {_MOST_BYTES / 1e9:.1f} GB"
            )

    @property
    def samples(self) -> int:
        """Samples in a segment."""
        return round(self.seconds * self.sample_rate)

    @property
    def window_hop(self) -> int:
        """Samples from the start of one window to the start of the next, when segmenting."""
        return max(1, round(self.samples * (1 - self.overlap)))

    @property
    def shape(self) -> tuple[int, int]:
        """(frame, freq) of a segment.

        ``frame`` is ``ceil(samples / hop) + 1``; ``freq`` is ``n_fft / 2 + 1``, or the number of
        mel bands.
        """
        return -(-self.samples // self.hop) + 1, self.bands

    @property
    def is_mel(self) -> bool:
        """Whether the features are mel bands."""
        return self.features in ("mel", "log-mel")

    @property
    def is_log(self) -> bool:
        """Whether the features are in dB."""
        return self.features in ("log-magnitude", "log-mel")

    @property
    def bands(self) -> int:
        """Number of frequencies in a frame."""
        return (self.n_mels or _N_MELS) if self.is_mel else self.n_fft // 2 + 1

    def segment_id(self, recording: str, index: int) -> str:
        """Return the id of a segment, ``RECORDING#00001``; a cut recording keeps its own id."""
        return recording if self.longer == "cut" else f"{recording}#{index:05d}"

    def recording_of(self, segment_id: str) -> str:
        """Return the id of a segment's recording: the inverse of `segment_id`."""
        return segment_id if self.longer == "cut" else segment_id.rpartition("#")[0] or segment_id

    def kept_together(self, segment_id: str, source: str) -> str:
        """Return the recording or file of a segment, all of whose segments stay in one split.

        Args:
            segment_id: id of a segment.
            source: ``PATH#START_S`` of the segment.
        """
        if self.longer == "segment":
            return self.recording_of(segment_id)
        return source.rpartition("#")[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all fields."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain types; fields that came later are left out if not used.

        So the fingerprint of a recipe does not change when antigram learns another field.
        """
        plain = {**asdict(self), "options": dict(self.options)}
        for name, unused in _LATER.items():
            if plain[name] == unused:
                del plain[name]
        return plain

    def levels(self, mean: float, std: float) -> Levels:
        """Return what features say about loudness when they are normalised.

        Args:
            mean: mean that was subtracted.
            std: standard deviation by which they were divided.
        """
        if self.is_log:
            return Levels((LEAST_DB - mean) / std, per_db=1 / std)
        return Levels(-mean / std, exponent=2 if self.is_mel else 1)

    def spectrum_differs(self, other: Recipe) -> str:
        """Return the first field in which the features of two recipes differ, or nothing."""
        return next((f for f in _SPECTRUM if getattr(self, f) != getattr(other, f)), "")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_json` stored.

        Raises:
            StoredDataError: a field is unknown or invalid, or the version is not `VERSION`.
        """
        unknown = sorted(set(stored) - {f.name for f in fields(cls)})
        if unknown or stored.get("version") != VERSION:
            raise StoredDataError(
                f"recipe: version {stored.get('version')!r}, unknown fields {unknown}; "
                f"this antigram reads {VERSION!r}. Prepare the store again."
            )
        try:
            return cls(**stored)
        except (InputError, TypeError) as error:
            raise StoredDataError(f"recipe: {error}. Prepare the store again.") from None
