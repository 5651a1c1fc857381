"""Explain what checkpoints predict for a recording: Grad-CAM as a picture or a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antigram.model.choices import Layer
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import write_durably
from antigram.pipeline.storage.publish import check_goal
from antigram.pipeline.table import plain_text

if TYPE_CHECKING:
    from antigram.model.training.explain import Explanation
    from antigram.studies.figures.panels import Panel
    from antigram.studies.figures.spectrograms import Spectrogram
    from antigram.studies.report.page import Page

__all__ = ["Explanations", "explain_file", "explanation_page", "explanation_panels"]

_FORMS = (".html", ".png", ".svg")
_OF_RUNS = ("best.pt", "last.pt")  # the folder has the name of the run


@dataclass(frozen=True, slots=True, eq=False)
class Explanations:
    """What each checkpoint sees in a recording.

    Attributes:
        audio: the recording.
        picture: the file that was written.
        of: checkpoint -> its explanation, in the order in which they were named.
    """

    audio: Path
    picture: Path
    of: dict[Path, Explanation]

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``explain --json``."""
        return {
            "file": plain_text(self.audio),
            "picture": plain_text(self.picture),
            "explanations": [
                {"checkpoint": plain_text(ckpt), **explanation.to_json()}
                for ckpt, explanation in self.of.items()
            ],
        }

    def lines(self) -> list[str]:
        """Return a line for each checkpoint, and one that names the file that was written."""
        texts = [f"{plain_text(ckpt)}: {_text(found)}" for ckpt, found in self.of.items()]
        return [*texts, f"written: {plain_text(self.picture)}"]


def explain_file(
    ckpts: Sequence[Path],
    audio: Path,
    *,
    layer: Layer | None = None,
    class_name: str | None = None,
    to: Path = Path("grad-cam.png"),
    device: str = "auto",
    arch: str | None = None,
    on_message: OnMessage = lambda _: None,
) -> Explanations:
    """Show which parts of a recording's spectrogram speak for the class that is predicted.

    Each checkpoint has a panel with Grad-CAM (Selvaraju and others 2017) over the spectrogram that
    its own preprocessing makes.

    Args:
        ckpts: checkpoints, such as those of teacher, baseline and student.
        audio: the recording, of at most two minutes.
        layer: number of a VGG's convolution layer, or name of a module; default: the deepest of
            each network.
        class_name: class to explain; default: the predicted one. Networks that do not know the
            class are explained for the class that they predict.
        to: file to write: ``.png``, ``.svg`` or a page ``.html``; an existing file is replaced.
        device: device of the networks, such as ``cpu`` or ``auto``.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_message: called with lines of text, such as for a network that does not know the class.

    Raises:
        InputError: an argument does not fit, or the recording cannot be used.
        StoredDataError: a checkpoint is damaged.
    """
    if to.suffix.lower() not in _FORMS:
        raise InputError(f"`to` {plain_text(to)}: wanted a file that ends in {', '.join(_FORMS)}")
    check_goal("`to`", to)
    if not ckpts:
        raise InputError("`ckpts`: no checkpoint is named; wanted at least one")

    # Imported only now, so that a wrong name is refused at once.
    from antigram.model.nets.own import import_own
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.device import named_device
    from antigram.model.training.explain import explain
    from antigram.studies.job import layer_numbers

    import_own(arch)
    checkpoints = {path: load_checkpoint(path) for path in ckpts}
    if layer is not None:
        for checkpoint in checkpoints.values():
            layer_numbers([layer], checkpoint.arch, checkpoint.recipe.shape)
    knowing = {path for path, c in checkpoints.items() if class_name in c.classes}
    if class_name is not None and not knowing:
        known = dict.fromkeys(name for c in checkpoints.values() for name in c.classes)
        raise InputError(
            f"`class_name` {class_name!r}: no checkpoint knows this class; they know "
            f"{', '.join(list(known)[:12])}"
        )
    found = {}
    torch_device = named_device(device)
    for path, checkpoint in checkpoints.items():
        if class_name is not None and path not in knowing:
            on_message(f"{path}: does not know {class_name}; its own prediction is explained")
        label = class_name if path in knowing else None
        found[path] = explain(checkpoint, audio, layer=layer, label=label, device=torch_device)
    _write(to, audio, found)
    return Explanations(audio, to, found)


def explanation_panels(found: Mapping[str, Explanation]) -> list[Panel]:
    """Return a panel with the spectrogram, and one for the explanation of each network.

    Args:
        found: name of a network -> what it sees in the recording.
    """
    from antigram.studies.figures.panels import short
    from antigram.studies.figures.spectrograms import HeatMap, heat_panel, panel_of

    shown = {name: _spectrogram(explanation) for name, explanation in found.items()}
    panels = [panel_of("spectrogram", next(iter(shown.values())))]
    for name, explanation in found.items():
        title = (
            f"{short(name, 30)}, layer {explanation.layer}\n"
            f"{short(explanation.label, 24)} {explanation.probability:.1%}"
        )
        if explanation.label != explanation.prediction.label:
            title += f"; predicted {short(explanation.prediction.label, 16)}"
        if explanation.peak is None:
            title += "; nothing speaks for it"
        panels.append(
            heat_panel(
                HeatMap(
                    title=title,
                    spectrogram=shown[name],
                    heat=explanation.heat,
                    peak=explanation.peak and (explanation.peak.seconds, explanation.peak.band),
                )
            )
        )
    return panels


def _spectrogram(explanation: Explanation) -> Spectrogram:
    from antigram.studies.figures.spectrograms import Spectrogram, decibels

    return Spectrogram(
        values=decibels(explanation.magnitudes),
        unit="dB below the maximum",
        frame_s=explanation.frame_s,
        bin_hz=explanation.bin_hz,
    )


def _write(to: Path, audio: Path, found: dict[Path, Explanation]) -> None:
    """Draw the explanations, and write the picture or the page."""
    from antigram.studies.figures.panels import panels_file
    from antigram.studies.report.page import page_html

    names = _names(list(found))
    named = {names[path]: each for path, each in found.items()}
    form = to.suffix.lower()
    if form == ".html":
        content = page_html(explanation_page(audio, named)).encode(errors="replace")
    else:
        content = panels_file([explanation_panels(named)], "svg" if form == ".svg" else "png")
    write_durably(to, content)


def _names(ckpts: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each checkpoint: its run's or its file's, or its path if that is taken."""
    plain = {p: p.absolute().parent.name if p.name in _OF_RUNS else p.stem for p in ckpts}
    taken = list(plain.values())
    return {p: plain_text(name if taken.count(name) == 1 else p) for p, name in plain.items()}


def explanation_page(audio: Path, found: Mapping[str, Explanation]) -> Page:
    """Return a page with the panels of `explanation_panels`, and a table of their predictions.

    Args:
        audio: the recording.
        found: name of a network -> what it sees in the recording.
    """
    from antigram.studies.figures.panels import draw_panels
    from antigram.studies.report.page import Cell, Figure, Page, Table

    columns = ["network", "layer", "predicted", "class explained", "probability"]
    cells: list[list[Cell]] = []
    for name, each in found.items():
        peak = (
            "-"
            if each.peak is None
            else f"{each.peak.seconds:.2f} s, {each.peak.hz / 1000:.2f} kHz"
        )
        texts = [each.prediction.label, each.label, f"{each.probability:.1%}"]
        cells.append([name, each.layer, *texts, f"{each.maximum:.3g}", peak])
    caption = (
        "Grad-CAM over the spectrogram: bright areas, contours (25, 50 and 75 % of the maximum) "
        "and the cross (maximum) show what speaks for the class. Each network is scaled to its "
        "own maximum."
    )
    return Page(
        title=f"What networks hear in {plain_text(audio.name)}",
        question="Which parts of the spectrogram speak for the class? Grad-CAM at one layer.",
        answer=" ".join(f"{name}: {_text(each)}." for name, each in found.items()),
        parts=[
            Figure(caption=caption, rows=draw_panels([explanation_panels(found)]).rows),
            Table(
                caption="Predictions, and where Grad-CAM is largest",
                columns=[*columns, "maximum", "where"],
                rows=cells,
            ),
        ],
    )


def _text(explanation: Explanation) -> str:
    """Return text such as ``seven (0.982), most at 0.31 s and 1.2 kHz of layer 13``."""
    text = f"{explanation.label} ({explanation.probability:.3f})"
    if explanation.label != explanation.prediction.label:
        text += f", predicted {explanation.prediction.label}"
    if explanation.peak is None:
        return f"{text}, for which nothing speaks at layer {explanation.layer}"
    seconds, hz, _ = explanation.peak
    return f"{text}, most at {seconds:.2f} s and {hz / 1000:.2f} kHz of layer {explanation.layer}"
