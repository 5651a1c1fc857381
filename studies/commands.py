"""The commands of studies: parse options, make one library call, print. `cli.py` adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click import Choice, IntRange, argument, option

from antigram.studies import console
from antigram.studies.click_options import (
    ABOVE_0,
    COUNT,
    NETWORKS,
    PATH,
    arch_option,
    ckpt_option,
    data_option,
    device_option,
    flag_option,
    layers_option,
    own_option,
    seed_option,
    shown_option,
    task_option,
    width_option,
)
from antigram.studies.console import Context, common_options

__all__ = ["COMMANDS"]


_preset = option("--preset", help="paper: the paper's sizes; small: a table of the study's file.")
_corpus_map = option(
    "--corpus-map", type=console.Pairs(), help="Stand-ins, such as iemocap=fsdd,gsc=asc."
)
_only = option(
    "--only", multiple=True, help="Name of a setting or arm to run; others are left out."
)
_workers = option("--workers", type=IntRange(1, 256), help="Jobs at once; default: one per core.")
_dry_run = flag_option("--dry-run", help="List the jobs and estimate hours and bytes; run nothing.")


@click.command()
@argument("runs", nargs=-1)
@data_option
@task_option
@option("--against", help="The label that should not matter, which the teachers learn.")
@option(
    "--layers",
    "at_layers",
    type=console.Layers(),
    help="Layers at which anti-transfer is tried; default: 5,9,13.",
)
@option("--seeds", type=COUNT, help="Number of trainings of each arm in each fold; default: 5.")
@option("--groups", help="Label of the groups of the statistics; default: the label of --against.")
@option("--folds", help="kfold:LABEL:K[:N] (default: 5 over --against) or confounded:LABEL:OTHER.")
@option(
    "--arms",
    help="wi,at (default); also pairwise, dann, coral, augment, and the controls permuted, random, "
    "mean-gram, shuffled-labels, same-task, dropout, weight-decay, baseline-best.",
)
@option("--arch", help=f"{NETWORKS}. Default: vgg16.")
@option("--width", type=IntRange(1, 1024), help="64 (default) is the standard network.")
@option("--epochs", type=COUNT, help="Default: 50.")
@option("--patience", type=COUNT, help="Default: 10.")
@option("--batch-size", "batch_clips", type=COUNT, help="Default: 13.")
@option("--lr", type=ABOVE_0, help="Default: 5e-4.")
@_workers
@seed_option(help="Seed of the folds.")
@option("--name", help="Name of the study (default: STORE-TASK-against-AGAINST).")
@_dry_run
@common_options
def compare(common: Context, runs: tuple[str, ...], **options: Any) -> None:
    """Find out whether anti-transfer helps: compare students with and without it.

    Teachers and caches are made first. Students are trained over folds and seeds. With names of
    RUNS, only show these runs side by side.
    """
    from antigram.studies.compare import answered

    content, text = answered(common.workspace, runs, **options, on_message=common.on_message)
    common.answer(content, text)


@click.command()
@argument("file")
@_preset
@_corpus_map
@_only
@option("--seeds", type=COUNT, help="Trainings of each arm in each fold; default: as in the file.")
@_workers
@_dry_run
@common_options
def study(common: Context, file: str, **options: Any) -> None:
    """Run a study: data, teachers, arms, folds and seeds that a TOML file declares.

    FILE may be the name of a study that antigram comes with, such as is-it-invariance.
    """
    from antigram.studies.compare import run_file

    content, text = run_file(common.workspace, file, **options, on_message=common.on_message)
    common.answer(content, text)


@click.command()
@argument("names", nargs=-1, required=True)
@option(
    "--preset", type=Choice(("paper", "small")), default="paper", help="small: minutes on a CPU."
)
@_corpus_map
@option("--seeds", type=COUNT, help="Trainings of each arm; default: one, as in the paper.")
@_workers
@_dry_run
@common_options
def reproduce(common: Context, names: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Reproduce the paper's tables and figures: table2 to table6, fig3 to fig8, all."""
    from antigram.studies.reproduce import reproduce, reproduced_text

    content = reproduce(
        common.workspace, names, dry_run=dry_run, **options, on_message=common.on_message
    )
    common.answer(content, reproduced_text(content, dry_run=dry_run))


@click.command()
@argument("run")
@option("--task", required=True, help="The label to look for.")
@layers_option(type=console.Layer(), help="Number, name of a module, or all (default).")
@option("--data", help="The store; default: the one that the run was trained on.")
@option("--groups", help="Label whose classes are tested unheard; default: the run's task.")
@option(
    "--split",
    type=Choice(("train", "validation", "test", "all")),
    help="Segments to use; default: test if it has 10 for each class, else all.",
)
@shown_option("--parts", type=IntRange(2, 1000), default=5, help="Each is tested once.")
@option("--compare", help="Another run or checkpoint: CKA of the two by layer.")
@seed_option(help="Seed of parts, untrained network and shuffled labels.")
@own_option
@device_option
@common_options
def probe(common: Context, run: str, **options: Any) -> None:
    """How much of a label is left in each layer of RUN (or of a checkpoint's file)?

    Probes are tested on words, speakers or other groups that they were not trained on.
    """
    from antigram.studies.probe.command import probe as measured
    from antigram.studies.probe.command import probed_text

    with common.progress() as shown:
        content = measured(common.workspace, run, **options, **shown)
    common.answer(content, probed_text(content))


@click.command()
@argument("audio", type=PATH)
@option("--ckpt", "ckpts", type=PATH, multiple=True, required=True, help="Checkpoint(s).")
@option("--layer", type=console.Layer(), help="Number or name; default: each network's deepest.")
@option("--class", "class_name", help="The class to explain; default: the predicted one.")
@shown_option(
    "--to",
    type=PATH,
    default=Path("grad-cam.png"),
    help="File to write: FILE.png, FILE.svg or a page FILE.html.",
)
@own_option
@device_option
@common_options
def explain(common: Context, **options: Any) -> None:
    """Which parts of a recording speak for its predicted class: Grad-CAM at a convolution layer.

    AUDIO is one recording; several checkpoints are shown side by side.
    """
    from antigram.studies.explaining import explain_file

    done = explain_file(**options, on_message=common.on_message)
    common.answer(done.to_json(), "\n".join(done.lines()))


@click.command("layers")
@arch_option
@width_option
@ckpt_option(help="Checkpoint whose network is listed.")
@option("--data", help="The store whose segments it takes; default: segments of one second.")
@common_options
def layers(common: Context, **options: Any) -> None:
    """List the layers of a network that can be compared: channels, positions and input size."""
    from antigram.studies.layers import layers_text, list_layers

    content = list_layers(common.workspace, **options)
    common.answer(content, layers_text(content))


COMMANDS = (compare, study, reproduce, explain, probe, layers)
