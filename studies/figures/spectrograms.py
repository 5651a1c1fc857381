"""Panels of spectrograms, and of heat maps over them; axes in seconds, and kHz or mel bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antigram.studies.figures.panels import Panel, Panels, draw_panels, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HeatMap", "Spectrogram", "decibels", "draw_preparation", "heat_panel", "panel_of"]

_RANGE_DB = 80.0  # shown below the loudest value
_LEVELS = (0.25, 0.5, 0.75)  # contours, as shares of the maximum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrogram:
    """A spectrogram to be drawn.

    Attributes:
        values: ``(frame, freq)``.
        unit: what the values are, for the scale beside the panel.
        frame_s: seconds between two frames.
        bin_hz: Hz between two frequency bins; None for mel bands, whose axis counts from 0.
        most: value from which on all are drawn black; default: the largest.
    """

    values: NDArray[np.float32]
    unit: str
    frame_s: float
    bin_hz: float | None
    most: float | None = None

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge, in seconds and the unit of the frequency axis.

        Bins are centred on their values.
        """
        frames, bins = self.values.shape
        right, top = (frames - 0.5) * self.frame_s, (bins - 0.5) * self.bin_height
        return -0.5 * self.frame_s, right, -0.5 * self.bin_height, top

    @property
    def bin_height(self) -> float:
        """Height of a bin on the frequency axis: in kHz, or 1 for mel bands."""
        return 1.0 if self.bin_hz is None else self.bin_hz / 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatMap:
    """A heat map to be drawn over its spectrogram.

    Attributes:
        title: title of the panel.
        spectrogram: drawn in grey below the heat map.
        heat: ``(frame, freq)``, not negative; it is drawn as shares of its maximum.
        peak: seconds and bin of the maximum, which is marked; None if there is none.
    """

    title: str
    spectrogram: Spectrogram
    heat: NDArray[np.float32]
    peak: tuple[float, float] | None


def decibels(magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return STFT magnitudes in dB below the loudest one, at least -80; silence is -80."""
    loudest = float(magnitudes.max(initial=0))
    if loudest == 0:
        return np.full(magnitudes.shape, -_RANGE_DB, np.float32)
    shares = np.maximum(magnitudes / np.float32(loudest), np.float32(10 ** (-_RANGE_DB / 20)))
    level: NDArray[np.float32] = 20 * np.log10(shares)
    return level


def panel_of(title: str, spectrogram: Spectrogram) -> Panel:
    """Return a panel that shows a spectrogram: dark is loud, so that it prints well."""
    return Panel(
        draw=partial(_draw_spectrogram, title=title, spectrogram=spectrogram),
        alt=f"Spectrogram ({spectrogram.unit}): {title}",
    )


def heat_panel(heat_map: HeatMap) -> Panel:
    """Return a panel with a heat map over a grey spectrogram.

    Contours at a quarter, a half and three quarters of the maximum, and a cross at the maximum,
    show the same as the colours.
    """
    return Panel(draw=partial(_draw_heat, heat_map=heat_map), alt=f"Heat map: {heat_map.title}")


def draw_preparation(steps: Sequence[tuple[str, Spectrogram]]) -> Panels:
    """Draw spectrograms of one segment side by side, such as before and after preparation.

    Args:
        steps: titles and spectrograms, in order.
    """
    return draw_panels([[panel_of(title, spectrogram) for title, spectrogram in steps]])


def _show(axis: Axes, spectrogram: Spectrogram, values: NDArray[Any], **options: Any) -> Any:  # noqa: ANN401 - matplotlib's
    return axis.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        extent=spectrogram.extent,
        interpolation="nearest",
        **options,
    )


def _draw_spectrogram(axis: Axes, *, title: str, spectrogram: Spectrogram) -> None:
    most = spectrogram.most
    image = _show(axis, spectrogram, spectrogram.values, cmap="Greys", vmax=most)
    extend = "neither" if most is None or most >= spectrogram.values.max() else "max"
    axis.figure.colorbar(image, ax=axis, label=spectrogram.unit, extend=extend)
    _label(axis, title, spectrogram)


def _draw_heat(axis: Axes, *, heat_map: HeatMap) -> None:
    spectrogram, most = heat_map.spectrogram, float(heat_map.heat.max(initial=0))
    shares = heat_map.heat / most if most > 0 else heat_map.heat
    _show(axis, spectrogram, spectrogram.values, cmap="Greys")
    # Where nothing speaks for the class, the spectrogram stays visible.
    image = _show(
        axis, spectrogram, shares, cmap="plasma", vmin=0, vmax=1, alpha=0.65 * np.sqrt(shares.T)
    )
    bar = axis.figure.colorbar(image, ax=axis, label="share of the maximum")
    if heat_map.peak is not None:
        frames, bins = shares.shape
        at = np.arange(frames) * spectrogram.frame_s, np.arange(bins) * spectrogram.bin_height
        widths = (0.6, 1.1, 1.8)
        lines = axis.contour(*at, shares.T, levels=_LEVELS, colors="black", linewidths=widths)
        bar.add_lines(lines)
        seconds, index = heat_map.peak
        height = index * spectrogram.bin_height
        axis.plot(seconds, height, "X", color="white", markeredgecolor="black", markersize=9)
    axis.set_xlim(spectrogram.extent[:2])
    axis.set_ylim(spectrogram.extent[2:])
    _label(axis, heat_map.title, spectrogram)


def _label(axis: Axes, title: str, spectrogram: Spectrogram) -> None:
    set_title(axis, title)
    axis.set_xlabel("seconds")
    axis.set_ylabel("mel band" if spectrogram.bin_hz is None else "kHz")
