"""The commands of studies: parse options, make one library call, print. `cli.py` adds them."""

from __future__ import annotations

from typing import Any

import click
from click import Choice, IntRange, argument, option

from antigram.model import choices
from antigram.studies import console
from antigram.studies.click_options import (
    ABOVE_0,
    COUNT,
    data_option,
    flag_option,
    seed_option,
    task_option,
)
from antigram.studies.console import Context, common_options

__all__ = ["COMMANDS"]


_preset = option("--preset", help="paper: the paper's sizes; small: a table of the study's file.")
_corpus_map = option(
    "--corpus-map", type=console.Pairs(), help="Stand-ins, such as iemocap=fsdd,gsc=asc."
)
_only = option("--only", multiple=True, help="Names of settings and arms; others are left out.")
_workers = option("--workers", type=IntRange(1, 256), help="Trainings at once; default: the cores.")
_dry_run = flag_option("--dry-run", help="List the jobs and estimate hours and bytes; run nothing.")


@click.command()
@argument("runs", nargs=-1)
@data_option
@task_option
@option("--against", help="The label that should not matter, which the teachers learn.")
@option(
    "--layers",
    "at_layers",
    type=console.Numbers(),
    help="Where anti-transfer is tried; default: 5,9,13.",
)
@option("--seeds", type=COUNT, help="Trainings of each arm in each fold; default: 5.")
@option("--groups", help="Label of the groups of the statistics; default: that of --against.")
@option("--folds", help="kfold:LABEL:K[:N] (default: of --against, 5) or confounded:LABEL:OTHER.")
@option("--arms", help="Of wi, at, permuted, random, mean-gram, dropout, weight-decay; wi,at.")
@option("--arch", type=Choice(choices.ARCHS), help="Default: vgg16.")
@option("--width", type=IntRange(1, 1024), help="64 (default) is the real VGG.")
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
    """Does anti-transfer help? Teachers, caches and students over folds and seeds, compared.

    With names of RUNS, show these runs side by side.
    """
    from antigram.studies.compare import answered

    content, text = answered(common.workspace, runs, **options, on_message=common.on_message)
    common.answer(content, text)


@click.command()
@argument("file")
@_preset
@_corpus_map
@_only
@option("--seeds", type=COUNT, help="Trainings of each arm in each fold; default: the file's.")
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
@option("--preset", type=Choice(("paper", "small")), default="paper", help="small: minutes.")
@_corpus_map
@option("--seeds", type=COUNT, help="Trainings of each arm; default: one, as in the paper.")
@_workers
@_dry_run
@common_options
def reproduce(common: Context, names: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Reproduce the paper's NAMES: table2 to table6, fig3, fig4, fig6 to fig8, or all."""
    from antigram.studies.reproduce import reproduce, reproduced_text

    content = reproduce(
        common.workspace, names, dry_run=dry_run, **options, on_message=common.on_message
    )
    common.answer(content, reproduced_text(content, dry_run=dry_run))


COMMANDS = (compare, study, reproduce)
