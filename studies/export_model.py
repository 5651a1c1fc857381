"""Write the network of a checkpoint for other programs, and its preprocessing beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import atomic_file
from antigram.pipeline.storage.publish import check_goal

if TYPE_CHECKING:
    from antigram.model.training.exported import Format

__all__ = ["ExportedModel", "export_model"]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A network that was written for other programs.

    Attributes:
        file: the network.
        description: JSON file with the preprocessing.
        content: what that file holds.
    """

    file: Path
    description: Path
    content: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``export-model --json``."""
        return {
            "file": str(self.file),
            "description": str(self.description),
            "bytes": self.file.stat().st_size,
            **{key: self.content[key] for key in ("to", "task", "classes", "input", "output")},
        }

    def line(self) -> str:
        """Return a line with the files and what the network takes and returns."""
        shape = " x ".join(map(str, self.content["input"]["shape"]))
        return (
            f"{self.file}: {self.file.stat().st_size / 1e6:.1f} MB, features of {shape} to "
            f"{self.content['output']['name']} of {len(self.content['classes'])} classes; "
            f"preprocessing: {self.description}"
        )


def export_model(
    ckpt: Path,
    *,
    to: Format,
    out: Path | None = None,
    arch: str | None = None,
    on_message: OnMessage = lambda _: None,
) -> ExportedModel:
    """Write the network of a checkpoint as ONNX, TorchScript or safetensors.

    ONNX and TorchScript files take features that are not normalised, ``(segment, 1, frame, freq)``
    float32 with any number of segments, and return probabilities ``(segment, class)``. A file of
    safetensors holds the weights alone. ``OUT.json`` beside the file describes the preprocessing.

    Args:
        ckpt: the checkpoint.
        to: ``onnx``, ``torchscript`` or ``safetensors``.
        out: the file to write; default: beside the checkpoint, with the suffix ``.onnx``, ``.ts``
            or ``.safetensors``. An existing file is replaced.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_message: called with a line if the file could not be tried, as onnxruntime is missing.

    Raises:
        InputError: the checkpoint or the output cannot be used, a package is missing, or the
            network cannot be written in this format.
        StoredDataError: the checkpoint is damaged.
    """
    from antigram.model.nets.own import import_own
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.exported import FORMATS, describe, exported_bytes

    check_choice("`to`", to, tuple(FORMATS))
    file = ckpt.with_suffix(FORMATS[to]) if out is None else out
    if file.exists() and ckpt.exists() and file.samefile(ckpt):
        raise InputError(f"`out` {file}: is the checkpoint itself; name another file")
    description = file.with_name(f"{file.name}.json")
    for path in (file, description):
        check_goal("`out`", path)
    import_own(arch)
    checkpoint = load_checkpoint(ckpt)
    content = describe(checkpoint, to, file.name)
    data = exported_bytes(checkpoint, to, content, on_message)
    with atomic_file(file) as opened:
        opened.write(data)
    with atomic_file(description) as opened:
        opened.write((json.dumps(content, indent=2) + "\n").encode())
    return ExportedModel(file, description, content)
