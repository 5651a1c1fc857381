"""The command line: each command parses options, calls the library once and prints the answer.

torch takes seconds to import, so each command imports what it needs inside its function; the
workers of `prepare` import this file too and must start fast. Option names are written only here:
library messages name their own arguments in backquotes, and `App.in_options` turns those into
options. The file is long because it declares the options of every command.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from click import Choice, FloatRange, IntRange, argument, option

from antigram.model import choices
from antigram.pipeline.choices import LastWindow, Noise, SnrMode, Split
from antigram.studies import console
from antigram.studies.console import Context, common_options

__all__ = ["app", "main"]


_PATH = click.Path(path_type=Path)
_COUNT = IntRange(1)
_COUNT_OR_0 = IntRange(0)
_SHARE = FloatRange(0, 1, max_open=True)
_ABOVE_0 = FloatRange(0, math.inf, min_open=True, max_open=True)
_SECONDS = FloatRange(0, 3600, min_open=True)
_SEED = IntRange(0, 2**63 - 1)

# Options of several commands.
_flag = partial(option, is_flag=True)
_shown = partial(option, show_default=True)
_ckpt = partial(option, "--ckpt", type=_PATH)
_layers = partial(option, "--layer", "layers", multiple=True)
_data = option(
    "--data", help="Name of the store (default: the only one, or the one prepared last)."
)
_task = option("--task", help="Label to learn (default: the main label of the store).")
_arch = option(
    "--arch",
    type=Choice(choices.ARCHS),
    help="Network architecture (default: that of the teacher, or vgg16).",
)
_width = option(
    "--width",
    type=IntRange(1, 1024),
    help="Channels of the first block; 64 is the published VGG (default: that of the teacher, or "
    "64).",
)
_device = _shown("--device", type=console.Device(), default="auto")
_precision = _shown("--precision", type=Choice(choices.PRECISIONS), default="32")
_seed = partial(_shown, "--seed", type=_SEED, default=0)
_batch = partial(_shown, "--batch-size", "batch_clips", type=_COUNT)
_views = partial(option, "--views", type=_COUNT)


def _rows(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide the form of the rows of a cache."""
    command = _shown("--codec", type=Choice(("auto", *choices.CODECS)), default="auto")(command)
    command = _shown("--aggregation", type=Choice(choices.AGGREGATIONS), default="gram")(command)
    return _shown("--tap", type=Choice(choices.TAPS), default="relu")(command)


@click.group(
    cls=console.App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@option("--workspace", type=_PATH, help="Folder of stores, caches and runs (default: ./workspace).")
@_flag("--json", "as_json", help="Print one JSON object on stdout and nothing else.")
@_flag("-v", "--verbose", help="Log details on stderr.")
@click.version_option(package_name="antigram")
@click.pass_context
def app(ctx: click.Context, workspace: Path | None, as_json: bool, verbose: bool) -> None:
    """Anti-transfer learning on audio, with the teacher's Grams cached on disk."""
    from antigram.pipeline.workspace import Workspace

    root = workspace or Path(os.environ.get("ANTIGRAM_WORKSPACE") or "workspace")
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING)
    ctx.obj = Context(Workspace(root), as_json, app.in_options)


@app.command()
@argument("corpus")
@option("--source", type=_PATH, help="Folder of the corpus, or the folder above it.")
@option("--preset", help="paper: the settings of the paper; options given as well override them.")
@option(
    "--noise",
    type=Choice(get_args(Noise)),
    help="Mix in noise at an SNR of 20 to 40 dB (low) or 0 to 10 dB (high); default: none "
    "(ms-snsd: low).",
)
@option("--noise-source", type=_PATH, help="Folder of MS-SNSD, or its noise_train.")
@option(
    "--snr-mode",
    type=Choice(get_args(SnrMode)),
    help="exact (default), or released: half the SNR in dB, as in the paper's code.",
)
@option("--seconds", type=_SECONDS, help="Length of a segment (default: set by the corpus).")
@option("--overlap", type=_SHARE, help="Fraction of a segment that the next segment repeats.")
@option(
    "--last-window",
    type=Choice(get_args(LastWindow)),
    help="Zero-pad a recording's last segment (default), or let it end with the recording.",
)
@option(
    "--split",
    help="random (default), official or by:LABEL; or folds: kfold:LABEL:K (K parts of LABEL's "
    "classes, each the test of one fold), confounded:LABEL:OTHER (each OTHER has half of LABEL's "
    "classes in training, the other half in test).",
)
@option(
    "--within",
    help="Use only the training recordings of this store, with a new split: for a teacher that "
    "must "
    "not hear the test recordings.",
)
@option(
    "--limit-per-class",
    type=_COUNT_OR_0,
    help="Maximum number of recordings of each class (librispeech: words), drawn with the seed; "
    "0: all.",
)
@option(
    "--limit",
    type=_COUNT_OR_0,
    help="Maximum number of recordings (librispeech: words), drawn with the seed; 0: all.",
)
@_flag("--balance", default=None, help="Balance classes to the size of the smallest.")
@option("--seed", type=_SEED, help="Seed of splits, noise and limits (default: 0).")
@option(
    "--dtype", type=Choice(choices.DTYPES), help="Dtype of the stored features (default: float32)."
)
@option(
    "--workers", type=IntRange(1, 256), help="Number of processes (default: the number of cores)."
)
@_shown(
    "--max-rejected",
    type=_COUNT_OR_0,
    default=0,
    help="Number of unusable recordings and segments that may be left out.",
)
@_flag(
    "--check-sources",
    help="Read all recordings of an existing store again, to detect edits that kept size and time.",
)
@option("--name", help="Name of the store (default: corpus plus non-default options).")
@option("--labels", help="folder: label columns of metadata.csv, such as mood,singer.")
@option(
    "--main-label", help="folder: the main label (default: the column label, or the first label)."
)
@option("--words", help="gsc: digits (default), all, or a list; librispeech: the number of words.")
@option("--unit", help="librispeech: word (default) or utterance.")
@option("--subset", help="librispeech: all (default), or train-clean-100 and so on.")
@option("--hours", help="ms-snsd: hours of mixtures (default: 1).")
@option("--clean-source", type=_PATH, help="ms-snsd: folder of clean speech.")
@common_options
def prepare(common: Context, corpus: str, **options: Any) -> None:
    """Turn CORPUS into a feature store: normalised spectrograms of the segments of its recordings.

    The corpus decides whether a recording longer than a segment is cut or divided into several
    segments. Noise may be mixed in.
    """
    from antigram.studies.preparing import prepare_corpus
    from antigram.studies.text import prepared_text

    with common.progress() as shown:
        done = prepare_corpus(common.workspace, corpus, **options, **shown)
    if done.left_alone:
        common.on_message(f"{done.store.name}: already there, with this recipe; nothing to do")
    for line in done.summary.lines():
        common.on_message(line)
    content = done.to_json()
    common.answer(content, prepared_text(content))


@app.command()
@common_options
def corpora(common: Context) -> None:
    """List the corpora: labels, licence, citation, presets, and where each is stored."""
    from antigram.studies.status import describe_corpora
    from antigram.studies.text import corpora_text

    entries = describe_corpora(common.workspace)
    common.answer({"corpora": entries}, app.in_options(corpora_text(entries)))


@app.command()
@argument("corpus")
@option("--subset", help="librispeech: train-clean-100 (default), dev-clean and so on.")
@common_options
def download(common: Context, corpus: str, subset: str | None) -> None:
    """Download CORPUS, check it, and unpack it where `prepare` looks for it.

    An interrupted download is resumed.
    """
    from antigram.studies.preparing import download_corpus
    from antigram.studies.text import downloaded_text

    with common.progress() as shown:
        done = download_corpus(common.workspace, corpus, subset=subset, **shown)
    content = done.to_json()
    common.answer(content, downloaded_text(content))


@app.command("cache-grams")
@_ckpt(required=True, help="Checkpoint of the teacher.")
@_layers(required=True, type=console.Layer(), help="1 to 13, or all.")
@_data
@_rows
@option(
    "--dtype",
    type=Choice(choices.DTYPES),
    help="Dtype of the stored rows (default: float16; with compmul float32).",
)
@option(
    "--energy",
    type=FloatRange(0, 1, min_open=True),
    help="Fraction of ||G||^2 that lowrank keeps (default: 0.9999).",
)
@option("--rank", type=_COUNT, help="Rank of lowrank, in place of --energy.")
@_precision
@_views(help="Number of augmented views of each training segment (default: none).")
@option(
    "--teacher-control",
    type=Choice(choices.CONTROLS),
    help="A control in place of the teacher: its channels shuffled, untrained, or its mean Gram.",
)
@option(
    "--control-seed", type=_SEED, default=0, help="Seed of --teacher-control permuted and random."
)
@_seed(help="Seed of the views.")
@_batch(default=32)
@_device
@_flag("--dry-run", help="Print size, time and break-even; write nothing.")
@option("--name", help="Name of the cache (default: STORE--CKPT).")
@common_options
def cache_grams(common: Context, dry_run: bool, **options: Any) -> None:
    """Run the teacher over a store once, and store its Gram matrices."""
    from antigram.studies.caching import cache_grams as run
    from antigram.studies.caching import estimate_grams
    from antigram.studies.text import built_text, estimate_text

    if dry_run:
        costs = estimate_grams(common.workspace, **options, on_message=common.on_message)
        common.answer(costs, estimate_text(costs))
        return
    with common.progress() as shown:
        built = run(common.workspace, **options, **shown)
    if not built.computed:
        common.on_message(f"{built.path.stem}: already there, with these keys; nothing to do")
    content = built.to_json()
    common.answer(content, built_text(content))


@app.command()
@_layers(required=True, type=console.Layer(), help="1 to 13, or all.")
@_data
@_task
@_ckpt(help="Checkpoint of the teacher, for its architecture and width.")
@_arch
@_width
@_rows
@option("--rank", type=_COUNT, help="Rank of lowrank.")
@_shown("--dtype", type=Choice(choices.DTYPES), default="float16")
@_shown("--nets", type=_COUNT, default=1, help="Number of teachers.")
@_batch(default=13)
@_precision
@common_options
def plan(common: Context, **options: Any) -> None:
    """Report what a training would take: memory and FLOPs of a step, and size of the cache."""
    from antigram.studies.plan import plan as run
    from antigram.studies.text import budget_text

    costs = run(common.workspace, **options, on_message=common.on_message)
    common.answer(costs, budget_text(costs))


@app.command()
@option("--mode", type=Choice(choices.MODES), required=True)
@_data
@_task
@option("--ckpt", "ckpts", multiple=True, type=_PATH)
@option(
    "--cache",
    "caches",
    multiple=True,
    help="Gram cache (default: the only or latest one of the store).",
)
@_layers(
    type=console.Layer(of_source=True),
    help="Layer(s) compared with the teacher, e.g. 5 or emo:5; with --mode frozen, the last "
    "frozen layer.",
)
@option(
    "--tap",
    type=Choice(choices.TAPS),
    help="Where feature maps are taken (default: as in the cache, or relu).",
)
@option(
    "--beta",
    "betas",
    multiple=True,
    type=console.Beta(),
    help="Weight of the AT loss, or NAME:BETA for one teacher (default: 1); negative values reward "
    "similarity.",
)
@option(
    "--aggregation",
    type=Choice(choices.AGGREGATIONS),
    help="What is computed from the maps (default: as in the cache, or gram).",
)
@_shown("--similarity", type=Choice(choices.SIMILARITIES), default="cos2")
@_shown(
    "--loss",
    type=Choice(choices.LOSSES),
    default="paper",
    help="released: as in the published code; only with --mode online.",
)
@option("--init", type=_PATH, help="Checkpoint whose convolutions initialise the student.")
@_arch
@_width
@option(
    "--epochs",
    type=_COUNT,
    help="Maximum number of epochs (default: 50, or as in the resumed run).",
)
@option(
    "--patience",
    type=_COUNT,
    help="Epochs without improvement before training stops (default: 5, or as in the resumed run).",
)
@_batch(default=13, help="Segments in a batch.")
@_shown("--lr", type=_ABOVE_0, default=5e-4)
@_shown("--dropout", type=_SHARE, default=0.5)
@_shown("--weight-decay", type=FloatRange(0, 100), default=0.0, help="Decoupled, as in AdamW.")
@_seed()
@_flag(
    "--augment",
    help="Augment with masks, shifts and gain; with --mode cached, the cache must have --views.",
)
@_views(
    help="With --augment: number of stored augmented views to cycle through (default: draw new "
    "ones each epoch)."
)
@_device
@_precision
@option(
    "--device-memory",
    type=FloatRange(0, 1e6, max_open=True),
    help="GB of GPU memory for data (default: half of what is free; 0: none).",
)
@option("--max-steps", type=_COUNT_OR_0, default=0, help="Stop after N steps; 0: no limit.")
@_flag("--resume", help="Resume an interrupted run.")
@_flag("--keep-resume", help="Keep last.pt, so that the run can be resumed with more --epochs.")
@option("--name", help="Name of the run (default: MODE-STORE-seedN).")
@option("--save", type=_PATH, help="File for a copy of the best weights.")
@common_options
def train(common: Context, device_memory: float | None, **options: Any) -> None:
    """Train a student on the segments of a store, with or without anti-transfer."""
    from antigram.studies.text import trained_text
    from antigram.studies.training import train_student

    result = train_student(
        common.workspace,
        **options,
        device_memory=None if device_memory is None else int(device_memory * 1e9),
        display=common.display,
        on_message=common.on_message,
    )
    common.answer(result, trained_text(result))


@app.command()
@_ckpt(required=True, help="The checkpoint.")
@_data
@_shown("--split", type=Choice(get_args(Split)), default="test")
@option("--task", help="Label of the store to score (default: the task of the checkpoint).")
@_device
@common_options
def evaluate(common: Context, split: Split, **options: Any) -> None:
    """Report accuracy, recalls and confusion matrix of a checkpoint on a split of a store.

    Segments are scored one by one, recordings by the mean log-probabilities of their segments.
    """
    from antigram.studies.scoring import evaluate_file
    from antigram.studies.text import scores_text

    scores = evaluate_file(common.workspace, split=split, **options, on_message=common.on_message)
    common.answer(scores.to_json(), f"{split}: {scores_text(scores)}")


@app.command()
@_ckpt(required=True, help="The checkpoint.")
@option("--csv", "table", type=_PATH, help="CSV file for the predictions of the segments.")
@_flag("--skip-unreadable", help="Skip files that cannot be used, and list them.")
@_device
@argument("audio", nargs=-1, required=True, type=_PATH)
@common_options
def predict(common: Context, **options: Any) -> None:
    """Predict the classes of recordings and their segments, with probabilities.

    AUDIO are files, folders (with all audio files below them) or patterns such as 'rec/*.wav'. A
    recording is predicted by the mean log-probabilities of its segments.
    """
    from antigram.studies.predicting import predict_files

    with common.progress() as shown:
        done = predict_files(**options, **shown)
    common.answer(done.to_json(), "\n".join(done.lines()))


@app.command()
@argument("names", nargs=-1)
@option(
    "--recompute",
    type=_COUNT,
    help="Number of segments of each cache to recompute with the teacher.",
)
@_ckpt(help="Checkpoint of the teacher, for --recompute.")
@option("--data", help="Name of the store, for --recompute (default: that of the cache).")
@_device
@common_options
def verify(common: Context, **options: Any) -> int:
    """Read every byte of stores, caches, runs, FILE.pt or FILE.h5; exit 3 if any is damaged."""
    from antigram.studies.text import verified_text
    from antigram.studies.verify import verified_json, verify_named

    done = verify_named(
        common.workspace,
        **options,
        on_verified=lambda verified: common.on_message(verified.line()),
        on_message=common.on_message,
    )
    content = verified_json(done)
    common.answer(content, verified_text(content))
    return 0 if content["ok"] else 3


@app.command("export")
@argument("name")
@option("--to", "goal", type=_PATH, required=True, help="File to write, FILE.h5.")
@common_options
def export_(common: Context, name: str, goal: Path) -> None:
    """Write the store or cache NAME to one HDF5 file, including its checksums."""
    from antigram.studies.exchanging import export

    with common.progress() as shown:
        done = export(common.workspace, name, goal, on_progress=shown["on_progress"])
    common.answer(done.to_json(), f"{done.file}: {done.bytes / 1e6:.1f} MB")


@app.command("import")
@argument("file", type=_PATH)
@option("--name", help="Name of the store or cache (default: that of the file).")
@common_options
def import_(common: Context, file: Path, name: str | None) -> None:
    """Import a store or cache from a FILE that `antigram export` wrote."""
    from antigram.studies.exchanging import import_ as run

    with common.progress() as shown:
        done = run(common.workspace, file, name=name, on_progress=shown["on_progress"])
    text = "imported" if done.imported else "already there"
    common.answer(done.to_json(), f"{done.path}: {text}")


@app.command()
@common_options
def status(common: Context) -> int:
    """List corpora, stores, caches and runs; exit 3 if a store or cache is damaged."""
    from antigram.studies.status import status as run
    from antigram.studies.text import status_text

    content = run(common.workspace)
    common.answer(content, status_text(content))
    return 3 if any("problem" in m for m in (*content["stores"], *content["caches"])) else 0


@app.command()
@_flag("--dry-run", help="Only list what would be removed.")
@common_options
def clean(common: Context, dry_run: bool) -> None:
    """Remove what killed commands left, including unfinished work; keep what is in use."""
    from antigram.studies.leftovers import clean as run

    done = run(common.workspace, dry_run=dry_run)
    lines = done.lines("would be removed" if dry_run else "removed")
    common.answer({"dry_run": dry_run, **done.to_json()}, "\n".join(lines))


@app.command()
@option("--report", type=_PATH, default=Path("report.html"))
@_shown("--width", type=int, default=4)
@_shown("--epochs", type=_COUNT, default=12)
@_seed()
@common_options
def demo(common: Context, **options: Any) -> None:
    """Run all steps on speech synthesised on this machine, in minutes on a CPU; write a report."""
    from antigram.studies.demo import run_demo, table

    content = run_demo(common.workspace, **options, on_message=common.on_message)
    common.answer(content, table(content))


@app.command()
@argument("runs", nargs=-1)
@_data
@_task
@option("--against", help="Label that should not matter, which the teachers learn.")
@option(
    "--layers",
    "at_layers",
    type=console.Numbers(),
    help="Layers at which anti-transfer is tried (default: 5,9,13).",
)
@option("--seeds", type=_COUNT, help="Number of trainings of each arm in each fold (default: 5).")
@option(
    "--folds", help="kfold:LABEL:K (default: LABEL is --against, K is 5) or confounded:LABEL:OTHER."
)
@option(
    "--arms",
    help="Comma-separated arms: wi, at, permuted, random, mean-gram, dropout, weight-decay "
    "(default: wi,at).",
)
@option("--arch", type=Choice(choices.ARCHS), help="Default: vgg16.")
@option(
    "--width",
    type=IntRange(1, 1024),
    help="Channels of the first block (default: 64, the published VGG).",
)
@option("--epochs", type=_COUNT, help="Maximum number of epochs (default: 50).")
@option(
    "--patience",
    type=_COUNT,
    help="Epochs without improvement before training stops (default: 10).",
)
@option("--batch-size", "batch_clips", type=_COUNT, help="Segments in a batch (default: 13).")
@option("--lr", type=_ABOVE_0, help="Learning rate (default: 5e-4).")
@option(
    "--workers",
    type=IntRange(1, 256),
    help="Number of trainings at once (default: the number of cores).",
)
@_seed(help="Seed of the folds.")
@option("--name", help="Name of the study (default: STORE-TASK-against-AGAINST).")
@_flag("--dry-run", help="List the jobs and estimate hours and bytes; do not train.")
@common_options
def compare(common: Context, runs: tuple[str, ...], **options: Any) -> None:
    """Test whether anti-transfer helps: train teachers and students over folds and seeds.

    With names of RUNS, show these runs side by side.
    """
    from antigram.studies.compare import answered

    content, text = answered(common.workspace, runs, **options, on_message=common.on_message)
    common.answer(content, text)


def main() -> None:
    """Run a command; turn expected failures into one line and an exit code."""
    sys.exit(console.run(app))


if __name__ == "__main__":
    main()
