"""Commands on trained networks and runs: parse options, make one library call, print."""

from __future__ import annotations

from typing import Any

import click
from click import Choice, option

from antigram.studies.click_options import PATH, ckpt_option, own_option
from antigram.studies.console import Context, common_options

__all__ = ["COMMANDS"]


@click.command("export-model")
@ckpt_option(required=True, help="The checkpoint.")
@option("--to", type=Choice(("onnx", "torchscript", "safetensors")), required=True)
@option("--out", type=PATH, help="Default: beside the checkpoint.")
@own_option
@common_options
def export_model(common: Context, **options: Any) -> None:
    """Write the network of a checkpoint for other programs, with its preprocessing as JSON.

    ONNX and TorchScript take features that are not normalised and return probabilities;
    safetensors holds the weights.
    """
    from antigram.studies.export_model import export_model as run

    done = run(**options, on_message=common.on_message)
    common.answer(done.to_json(), done.line())


COMMANDS = (export_model,)
