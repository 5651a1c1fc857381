"""Augmented views of a segment: a shift, a gain and two masks, with reproducible parameters.

The parameters depend on the seed, the segment's id and the view's number alone. A cache can
therefore hold the Gram matrices of some views with their parameters, and a training makes the same
views again.

References:
    Masks: Park et al. (2019), SpecAugment, doi:10.21437/Interspeech.2019-2680. torchaudio's
    masking does not return the parameters that it draws, which a cache has to store; a test
    compares the masks of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError

__all__ = ["COLUMNS", "Levels", "Views", "apply_views"]

# Parameters of a view, in frames, dB, frames, frames, bins and bins. Zeros change nothing.
COLUMNS = ("shift", "gain_db", "time_first", "time_frames", "freq_first", "freq_bins")


class Levels(NamedTuple):
    """What normalised values say about loudness.

    Attributes:
        silence: value of silence.
        per_db: change of a value when the sound gets one dB louder, if the values are in dB; 0 if
            they are amplitudes or powers.
        exponent: 1 for amplitudes, 2 for powers.
    """

    silence: float
    per_db: float = 0.0
    exponent: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Strengths of the augmentation, and how many views a segment has.

    Attributes:
        count: number of views that epochs cycle through; 0: a new view in every epoch.
        seed: seed of all draws.
        time_mask: largest number of frames that the time mask covers.
        freq_mask: largest number of bins that the frequency mask covers.
        shift: largest shift in frames, in either direction; the gap is filled with silence.
        gain_db: largest gain in dB, in either direction.
    """

    count: int
    seed: int
    time_mask: int
    freq_mask: int
    shift: int
    gain_db: float

    @classmethod
    def for_shape(cls, shape: tuple[int, int], *, count: int, seed: int) -> Views:
        """Return default strengths: masks to 1/5, shifts to 1/10 of an axis, gains to 6 dB."""
        frames, bins = shape
        return cls(
            count=count,
            seed=seed,
            time_mask=frames // 5,
            freq_mask=bins // 5,
            shift=frames // 10,
            gain_db=6.0,
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "seed" and not 0 <= getattr(self, field.name) < 1e6:
                raise InputError(
                    f"views: {field.name} is {getattr(self, field.name)}, wanted 0 or more"
                )

    def of_epoch(self, epoch: int) -> int:
        """Return the number of the view that an epoch, counted from 1, uses."""
        return (epoch - 1) % self.count if self.count else epoch - 1

    def params(self, clip_ids: Sequence[str], view: int, shape: tuple[int, int]) -> NDArray[Any]:
        """Draw the parameters of one view of some segments.

        Args:
            clip_ids: ids of the segments.
            view: number of the view, from 0.
            shape: (frame, freq) of a segment; masks and shifts stay within.

        Returns:
            ``(clip, 6)`` float32, with the columns of `COLUMNS`; frames and bins are integers.
        """
        frames, bins = shape
        shift = min(self.shift, frames - 1)
        params = np.zeros((len(clip_ids), len(COLUMNS)), np.float32)
        for row, clip in zip(params, clip_ids, strict=True):
            shift_draw, gain_draw, frames_draw, time_draw = draw(self.seed, f"view/{view}", clip, 4)
            bins_draw, freq_draw = draw(self.seed, f"view/{view}/freq", clip, 2)
            covered = frames_draw % (min(self.time_mask, frames) + 1)
            masked = bins_draw % (min(self.freq_mask, bins) + 1)
            row[:] = (
                shift_draw % (2 * shift + 1) - shift,
                self.gain_db * (2 * (gain_draw / 2**64) - 1),
                time_draw % (frames - covered + 1),
                covered,
                freq_draw % (bins - masked + 1),
                masked,
            )
        return params

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Views:
        """Return the views that `to_json` stored; raise TypeError on missing or unknown fields."""
        if set(stored) != {field.name for field in fields(cls)}:
            raise TypeError(f"views: fields {sorted(stored)}")
        return cls(**stored)


def apply_views(x: NDArray[np.float32], params: NDArray[np.float32], levels: Levels) -> None:
    """Apply the parameters of a view in place: shift, then gain, then masks of silence.

    Args:
        x: ``(clip, frame, freq)`` normalised features; overwritten.
        params: ``(clip, 6)``, from `Views.params`.
        levels: of the store. The gain scales distances from silence, as it is a gain of the
            magnitudes; values in dB are raised by it, and not lowered below silence.
    """
    quiet = np.float32(levels.silence)
    for clip, values in zip(x, params.tolist(), strict=True):
        shift, t_first, t_count, f_first, f_count = (int(values[i]) for i in (0, 2, 3, 4, 5))
        if shift > 0:
            clip[shift:] = clip[:-shift].copy()
            clip[:shift] = quiet
        elif shift < 0:
            clip[:shift] = clip[-shift:].copy()
            clip[shift:] = quiet
        if values[1] != 0 and levels.per_db:
            np.add(clip, np.float32(values[1] * levels.per_db), out=clip, where=clip > quiet)
            np.maximum(clip, quiet, out=clip)
        elif values[1] != 0:
            gain = np.float32(10 ** (levels.exponent * values[1] / 20))
            np.multiply(clip, gain, out=clip)
            np.add(clip, (1 - gain) * quiet, out=clip)
        clip[t_first : t_first + t_count] = quiet
        clip[:, f_first : f_first + f_count] = quiet
