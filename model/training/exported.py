"""A trained network in formats of other programs, with its preprocessing described as JSON.

ONNX and TorchScript files take features that are not normalised and return probabilities; files of
safetensors hold the weights alone. The description is stored in the file as well as beside it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from antigram.model.training.checkpoint import Checkpoint
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import LEAST_DB, Recipe

__all__ = ["FORMATS", "Format", "Probabilities", "describe", "exported_bytes"]

Format = Literal["onnx", "torchscript", "safetensors"]
FORMATS: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".ts", "safetensors": ".safetensors"}
KEY = "antigram"  # of the description inside the file
_TOLERANCE = 1e-5
_SAFE = {torch.float32: "F32", torch.int64: "I64"}


class Probabilities(nn.Module):
    """A network with the normalisation of its input before it, and a softmax behind it.

    Args:
        checkpoint: the network, with mean and standard deviation of its training split.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.net = checkpoint.net()
        self.register_buffer("mean", torch.tensor(checkpoint.mean))
        self.register_buffer("scale", torch.tensor(1 / checkpoint.std))

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(segment, class)`` probabilities of ``(segment, 1, frame, freq)`` features."""
        logits: Tensor = self.net((features - self.mean) * self.scale)
        return logits.softmax(1)


def describe(checkpoint: Checkpoint, to: Format, file: str) -> dict[str, Any]:
    """Return what a program needs that goes from audio to the network's input, as plain types.

    Args:
        checkpoint: the network, with its classes and preprocessing.
        to: format of the file.
        file: name of the file.
    """
    recipe, weights_only = checkpoint.recipe, to == "safetensors"
    frames, freqs = recipe.shape
    network = {} if not weights_only else {"network": checkpoint.arch.to_json()}
    return {
        "format": "antigram/exported-model",
        "format_version": 1,
        "file": file,
        "to": to,
        "task": checkpoint.task,
        "classes": list(checkpoint.classes),
        "input": {
            "name": "features",
            "dtype": "float32",
            "shape": ["segment", 1, frames, freqs],
            "normalised": weights_only,
        },
        "output": {
            "name": "logits" if weights_only else "probabilities",
            "dtype": "float32",
            "shape": ["segment", len(checkpoint.classes)],
        },
        **network,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "audio": {
            "sample_rate": recipe.sample_rate,
            "channels": 1,
            "seconds": recipe.seconds,
            "samples": recipe.samples,
            "resampler": recipe.resampler,
        },
        "features": {
            "kind": recipe.features,
            "n_fft": recipe.n_fft,
            "hop": recipe.hop,
            "window": recipe.window,
            "n_mels": recipe.bands if recipe.is_mel else None,
            "least_db": LEAST_DB if recipe.is_log else None,
        },
        "segments": {
            "longer": recipe.longer,
            "hop_samples": recipe.window_hop,
            "last_window": recipe.last_window,
        },
        "how": _how(checkpoint, normalised=weights_only),
        "recipe": recipe.to_json(),
        "scores": checkpoint.scores,
        "provenance": checkpoint.provenance,
    }


def _how(checkpoint: Checkpoint, *, normalised: bool) -> list[str]:
    """Return the steps from a recording to its classes, in words."""
    recipe = checkpoint.recipe
    frames, _ = recipe.shape
    longer = f"A longer recording has a segment every {recipe.window_hop} samples."
    if recipe.longer == "cut":
        longer = "Of a longer recording take the start."
    steps = [
        f"Average the channels and resample to {recipe.sample_rate} Hz; full scale is 1.",
        f"A segment has {recipe.samples} samples; pad a shorter one with zeros at the end. "
        f"{longer}",
        f"Pad the segment with {recipe.n_fft // 2} zeros in front, and behind up to "
        f"{(frames - 1) * recipe.hop + recipe.n_fft} samples.",
        f"Take {frames} frames of {recipe.n_fft} samples, {recipe.hop} samples apart. Multiply "
        f"each by the periodic {recipe.window} window (scipy.signal.get_window), divided by its "
        f"sum; take the magnitudes of the {recipe.n_fft // 2 + 1} bins of its real FFT.",
        *_spectrum_steps(recipe),
        "The array (segment, 1, frame, frequency) in float32 is the input.",
    ]
    if normalised:
        steps.append(
            f"Subtract the mean {checkpoint.mean!r}, divide by {checkpoint.std!r}, run the network "
            "with these weights, and take the softmax of its logits."
        )
    else:
        steps.append("Do not normalise: the graph subtracts the mean and divides by std itself.")
    return [
        *steps,
        "A recording of several segments: take the mean of the logarithms of their probabilities, "
        "and the softmax of that.",
    ]


def _spectrum_steps(recipe: Recipe) -> list[str]:
    steps, name, factor = [], "magnitude", 20
    if recipe.is_mel:
        name, factor = "power", 10
        steps.append(
            f"Square the magnitudes, and sum them under {recipe.bands} triangles of height 1, "
            f"whose {recipe.bands + 2} edges are equally spaced from 0 to "
            f"{recipe.sample_rate / 2:g} Hz in mel = 2595 log10(1 + Hz / 700)."
        )
    if recipe.is_log:
        least = 10 ** (LEAST_DB / factor)
        steps.append(f"Take {factor} log10 of each {name}, which counts as at least {least:g}.")
    return steps


def exported_bytes(
    checkpoint: Checkpoint,
    to: Format,
    description: Mapping[str, Any],
    on_message: Callable[[str], None] = lambda _: None,
) -> bytes:
    """Return the content of an exported file.

    Args:
        checkpoint: the network to export.
        to: format of the file.
        description: result of `describe`, which is stored in the file.
        on_message: called with a line if the file could not be tried.

    Raises:
        InputError: a package is missing, or the network cannot be exported: it fails, or the
            exported network gives other probabilities.
    """
    text = json.dumps(description)
    if to == "safetensors":
        return _safetensors(checkpoint.state_dict, text)
    net = Probabilities(checkpoint).eval().requires_grad_(requires_grad=False)
    # Not one, and not equal to another size: else an exporter may take the number as constant.
    x = torch.rand(3, 1, *checkpoint.recipe.shape) * 2 * checkpoint.std + checkpoint.mean
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporters, about themselves
        content, run = (_onnx if to == "onnx" else _torchscript)(net, x, text)
        if run is None:
            on_message("not tried, as onnxruntime is not installed")
            return content
        for batch in (x, x[:1], torch.cat([x, x.flip(0)])):
            worst = float((run(batch) - net(batch)).abs().max())
            if not worst <= _TOLERANCE:
                raise InputError(
                    f"`to={to}`: the exported network's probabilities differ by {worst:.1e}, "
                    f"wanted at most {_TOLERANCE:g}: it does in Python what the format cannot hold"
                )
    return content


_Run = Callable[[Tensor], Tensor]


def _onnx(net: nn.Module, x: Tensor, text: str) -> tuple[bytes, _Run | None]:
    """Return the content of an ONNX file, and a function that runs it, if onnxruntime is there."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"`to=onnx` needs {' and '.join(missing)}: pip install 'antigram[export]'; "
            "`to=torchscript` and `to=safetensors` need nothing more"
        )
    segment = torch.export.Dim("segment")
    try:
        program = torch.onnx.export(
            net,
            (x,),
            input_names=["features"],
            output_names=["probabilities"],
            dynamic_shapes={"features": {0: segment}},
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        program.model.metadata_props[KEY] = text
        content = program.model_proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 - torch's exporters raise anything
        raise _failed("onnx", error) from None
    if importlib.util.find_spec("onnxruntime") is None:
        return content, None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"features": x.numpy()})[0])


def _torchscript(net: nn.Module, x: Tensor, text: str) -> tuple[bytes, _Run]:
    """Return the content of a TorchScript file, and a function that runs it."""
    file = io.BytesIO()
    try:
        jit: Any = torch.jit  # untyped
        traced = jit.trace(net, (x,))
        jit.save(traced, file, _extra_files={KEY: text})
        file.seek(0)
        loaded: _Run = jit.load(file)
    except Exception as error:  # noqa: BLE001
        raise _failed("torchscript", error) from None
    return file.getvalue(), loaded


def _failed(to: Format, error: Exception) -> InputError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"`to={to}`: torch cannot export this network ({why}); try another format for `to`"
    )


def _safetensors(state: Mapping[str, Tensor], text: str) -> bytes:
    """Return weights in the format of safetensors.

    A file is the length of its header (8 bytes, little-endian), the header as JSON, padded with
    spaces to a multiple of 8, and the bytes of the tensors, little-endian and in C order.

    References:
        https://github.com/huggingface/safetensors, section "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", KEY: text}}
    parts, end = [], 0
    for name, tensor in state.items():
        array = tensor.detach().cpu().contiguous().numpy()
        part = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {
            "dtype": _SAFE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + len(part)],
        }
        parts.append(part)
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    return b"".join([struct.pack("<Q", len(words)), words, *parts])
