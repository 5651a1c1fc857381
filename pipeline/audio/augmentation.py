"""Augmented views of a clip: masks, a shift and a gain, drawn by name so that all can be redone.

What is drawn depends on the seed, the clip and the view's number alone. So a cache can hold the
Grams of some views with the numbers drawn for them, and a training makes the same views again.

References:
    Masks: Park and others (2019), SpecAugment, doi:10.21437/Interspeech.2019-2680. torchaudio's
    masking does not return the numbers that it draws, which must be kept here; a test compares
    the masks of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError

__all__ = ["COLUMNS", "Views", "apply_views"]

# Numbers of a view, as stored: frames, dB, frames, frames, bins, bins. All zero: the clip as it is.
COLUMNS = ("shift", "gain_db", "time_first", "time_frames", "freq_first", "freq_bins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How clips are augmented.

    Attributes:
        count: views of a clip, which epochs take by turns; 0: another one in each epoch.
        seed: of all draws.
        time_mask: most frames that the mask covers.
        freq_mask: most frequency bins.
        shift: most frames, either way; what is left open is silence.
        gain_db: most dB, either way.
    """

    count: int
    seed: int
    time_mask: int
    freq_mask: int
    shift: int
    gain_db: float

    @classmethod
    def for_shape(cls, shape: tuple[int, int], *, count: int, seed: int) -> Views:
        """The usual strengths: masks up to a fifth of an axis, shifts up to a tenth, 6 dB."""
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
        """The view that an epoch, counted from 1, takes."""
        return (epoch - 1) % self.count if self.count else epoch - 1

    def params(self, clip_ids: Sequence[str], view: int, shape: tuple[int, int]) -> NDArray[Any]:
        """Draw the numbers of some clips' view.

        Args:
            clip_ids: the clips.
            view: number of the view, from 0.
            shape: (frame, freq) of a clip; masks and shifts stay within.

        Returns:
            ``(clip, 6)`` float32, the columns as in `COLUMNS`; frames and bins are whole numbers.
        """
        frames, bins = shape
        shift = min(self.shift, frames - 1)
        drawn = np.zeros((len(clip_ids), len(COLUMNS)), np.float32)
        for row, clip in zip(drawn, clip_ids, strict=True):
            one, two, three, four = draw(self.seed, f"view/{view}", clip, 4)
            five, six = draw(self.seed, f"view/{view}/freq", clip, 2)
            covered = three % (min(self.time_mask, frames) + 1)
            masked = five % (min(self.freq_mask, bins) + 1)
            row[:] = (
                one % (2 * shift + 1) - shift,
                self.gain_db * (2 * (two / 2**64) - 1),
                four % (frames - covered + 1),
                covered,
                six % (bins - masked + 1),
                masked,
            )
        return drawn

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Views:
        """Inverse of `to_json`; raises TypeError where fields are missing or unknown."""
        if set(stored) != {field.name for field in fields(cls)}:
            raise TypeError(f"views: fields {sorted(stored)}")
        return cls(**stored)


def apply_views(x: NDArray[np.float32], params: NDArray[np.float32], silence: float) -> None:
    """Turn clips into views, in place: shifted, then louder or softer, then masked by silence.

    Args:
        x: ``(clip, frame, freq)`` normalised magnitudes.
        params: ``(clip, 6)``, from `Views.params`.
        silence: what a magnitude of zero is after normalisation: ``-mean / std`` of the store. The
            gain is that of the magnitudes: around this value.
    """
    quiet = np.float32(silence)
    for clip, numbers in zip(x, params.tolist(), strict=True):
        shift, t_first, t_count, f_first, f_count = (int(numbers[i]) for i in (0, 2, 3, 4, 5))
        if shift > 0:
            clip[shift:] = clip[:-shift].copy()
            clip[:shift] = quiet
        elif shift < 0:
            clip[:shift] = clip[-shift:].copy()
            clip[shift:] = quiet
        if numbers[1] != 0:
            gain = np.float32(10 ** (numbers[1] / 20))
            np.multiply(clip, gain, out=clip)
            np.add(clip, (1 - gain) * quiet, out=clip)
        clip[t_first : t_first + t_count] = quiet
        clip[:, f_first : f_first + f_count] = quiet
