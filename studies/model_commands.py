"""Commands on trained networks and runs: parse options, make one library call, print."""

from __future__ import annotations

from typing import Any, get_args

import click
from click import Choice, argument, option

from antigram.pipeline.choices import Split
from antigram.studies.click_options import (
    PATH,
    ckpt_option,
    data_option,
    device_option,
    flag_option,
    own_option,
    shown_option,
    stream_options,
)
from antigram.studies.console import Context, common_options

__all__ = ["COMMANDS"]


@click.command()
@ckpt_option(required=True, help="The checkpoint.")
@data_option
@shown_option("--split", type=Choice(get_args(Split)), default="test")
@option("--task", help="The store's label to score; default: the checkpoint's task.")
@own_option
@device_option
@common_options
def evaluate(common: Context, split: Split, **options: Any) -> None:
    """Compute accuracy, recalls and confusion matrix of a checkpoint on a split of a store.

    Segments are scored one by one; recordings by the mean of their segments' log-probabilities.
    """
    from antigram.studies.scoring import evaluate_file
    from antigram.studies.text import scores_text

    scores = evaluate_file(common.workspace, split=split, **options, on_message=common.on_message)
    common.answer(scores.to_json(), f"{split}: {scores_text(scores)}")


@click.command()
@ckpt_option(required=True, help="The checkpoint.")
@option("--csv", "table", type=PATH, help="Also write the predictions for segments to this file.")
@flag_option("--skip-unreadable", help="Leave out files that cannot be used, and list them.")
@stream_options
@own_option
@device_option
@argument("audio", nargs=-1, required=True, type=PATH)
@common_options
def predict(common: Context, stream: bool, hop_seconds: float | None, **options: Any) -> None:
    """Predict the classes of recordings and their segments, with probabilities.

    AUDIO are files, folders (with all audio files below them) or patterns such as 'rec/*.wav'. A
    recording is predicted by the mean of its segments' log-probabilities.
    """
    from antigram.studies.predicting import predict_files
    from antigram.studies.streaming import stream_files

    if stream:
        for each in stream_files(**options, hop_seconds=hop_seconds, on_message=common.on_message):
            common.answer(each.to_json(), each.line())
        return
    with common.progress() as shown:
        done = predict_files(**options, **shown)
    common.answer(done.to_json(), "\n".join(done.lines()))


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


@click.command()
@argument("run")
@option("--to", type=Choice(("mlflow", "wandb")), required=True)
@shown_option("--project", default="antigram", help="With mlflow: the experiment.")
@common_options
def track(common: Context, run: str, **options: Any) -> None:
    """Send settings, metrics and result of a RUN to MLflow or Weights & Biases.

    The run may be finished or not; each call makes a new run there.
    """
    from antigram.studies.tracking import track_run

    done = track_run(common.workspace, run, **options)
    common.answer(
        done,
        f"{run}: {done['epochs']} epochs sent to {done['to']}, project {done['project']}, as "
        f"{done['id']}",
    )


COMMANDS = (evaluate, predict, export_model, track)
