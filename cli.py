"""The command line: options, one library call, and its answer as text or JSON.

torch takes seconds to import, so each command imports only what it needs; workers of `prepare`
import this file, and must start fast. Option names are written only here, in `click_options`,
`commands` and `model_commands`; the library names its arguments in backquotes, and
`App.in_options` translates them. The file is long, as it holds most of the commands.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, get_args

import click
from click import Choice, FloatRange, IntRange, argument, option

from antigram.model import choices
from antigram.pipeline.choices import Features, LastWindow, Noise, SnrMode
from antigram.studies import commands, console, model_commands
from antigram.studies.click_options import (
    ABOVE_0,
    COUNT,
    COUNT_OR_0,
    PATH,
    SECONDS,
    SEED,
    SHARE,
    arch_option,
    batch_option,
    ckpt_option,
    config_options,
    data_option,
    device_option,
    flag_option,
    layers_option,
    local_cache_options,
    optimiser_options,
    own_option,
    precision_option,
    rows_options,
    scheduler_option,
    seed_option,
    shown_option,
    task_option,
    teacher_options,
    views_option,
    width_option,
)
from antigram.studies.console import Context, common_options

__all__ = ["app", "main"]


@click.group(
    cls=console.App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@option("--workspace", type=PATH, help="Default: ./workspace.")
@flag_option("--json", "as_json", help="One JSON object on stdout, nothing else.")
@flag_option("-v", "--verbose", help="More messages on stderr.")
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
@option("--source", type=PATH, help="Folder of the corpus, or above it; manifest: its file, too.")
@option("--audio-root", type=PATH, help="manifest: folder of the recordings (default: its own).")
@option("--preset", help="paper: the paper's settings; other options override them.")
@option(
    "--noise",
    type=Choice(get_args(Noise)),
    help="SNR 20 to 40 dB (low), 0 to 10 dB (high); default: none (ms-snsd: low).",
)
@option("--noise-source", type=PATH, help="Folder of MS-SNSD, or its noise_train.")
@option(
    "--snr-mode",
    type=Choice(get_args(SnrMode)),
    help="exact (default), or released: half the SNR in dB, as in the paper's code.",
)
@option("--seconds", type=SECONDS, help="Length of a segment; the default depends on the corpus.")
@option("--overlap", type=SHARE, help="Share of a segment that the next one repeats.")
@option(
    "--last-window",
    type=Choice(get_args(LastWindow)),
    help="Zero-pad a recording's last segment (default), or let it end with the recording.",
)
@option(
    "--split",
    help="random (default), official or by:LABEL; or folds: kfold:LABEL:K (K parts of LABEL's "
    "classes, each the test of one fold; K:N trains on N classes), confounded:LABEL:OTHER (each "
    "class of OTHER has half of LABEL's classes in training, the other half in test).",
)
@option(
    "--within",
    help="Take only the training recordings of this store, divided anew: for a teacher that must "
    "not hear the test recordings.",
)
@option(
    "--limit-per-class",
    type=COUNT_OR_0,
    help="Number of recordings of each class (librispeech: words), drawn by the seed; 0: all.",
)
@option(
    "--limit",
    type=COUNT_OR_0,
    help="Number of recordings in total (librispeech: words), drawn by the seed; 0: all.",
)
@option(
    "--features",
    type=Choice(get_args(Features)),
    help="magnitude of the STFT (default), power in mel bands, or either in dB.",
)
@option("--n-mels", type=COUNT, help="Mel bands; default: 40.")
@option("--sample-rate", type=COUNT, help="In Hz; default: 16000.")
@option("--n-fft", type=COUNT, help="Samples in a window of the STFT; default: 256.")
@option("--hop", type=COUNT, help="Samples between two frames; default: 128.")
@flag_option("--balance", default=None, help="Balance classes to the size of the smallest.")
@option("--seed", type=SEED, help="Default: 0.")
@option("--dtype", type=Choice(choices.DTYPES), help="Stored dtype; default: float32.")
@option("--workers", type=IntRange(1, 256), help="Number of processes; default: one per core.")
@scheduler_option
@shown_option(
    "--max-rejected",
    type=COUNT_OR_0,
    default=0,
    help="Number of unusable recordings and segments that may be left out.",
)
@flag_option(
    "--check-sources",
    help="Read an existing store (if above 8 GB, else always) and its recordings completely, to "
    "find edits that kept size and time.",
)
@option("--name", help="Name of the store (default: corpus plus non-default options).")
@option("--labels", help="folder, manifest: label columns or fields, like mood,singer.")
@option("--main-label", help="folder, manifest: main label; default: label, else the first label.")
@option("--words", help="gsc: digits (default), all, or a list; librispeech: number of words.")
@option("--unit", help="librispeech: word (default) or utterance.")
@option("--subset", help="librispeech: all (default), or train-clean-100 and so on.")
@option("--hours", help="ms-snsd: hours of mixtures; default: 1.")
@option("--clean-source", type=PATH, help="ms-snsd: folder of clean speech.")
@common_options
def prepare(common: Context, corpus: str, **options: Any) -> None:
    """Turn CORPUS into a feature store: normalised spectrograms of its recordings' segments.

    The corpus decides whether a recording longer than a segment is cut or divided into segments.
    Noise may be mixed in.
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
    """List the corpora: labels, licence, citation, presets, and where each one was found."""
    from antigram.studies.status import describe_corpora
    from antigram.studies.text import corpora_text

    found = describe_corpora(common.workspace)
    common.answer({"corpora": found}, app.in_options(corpora_text(found)))


@app.command()
@argument("corpus")
@option("--subset", help="librispeech: train-clean-100 (default), dev-clean and so on.")
@common_options
def download(common: Context, corpus: str, subset: str | None) -> None:
    """Fetch CORPUS, check it, and unpack it where `prepare` finds it; resumes if interrupted."""
    from antigram.studies.preparing import download_corpus
    from antigram.studies.text import downloaded_text

    with common.progress() as shown:
        done = download_corpus(common.workspace, corpus, subset=subset, **shown)
    content = done.to_json()
    common.answer(content, downloaded_text(content))


@app.command("cache-grams")
@ckpt_option(help="The teacher.")
@teacher_options
@layers_option(type=console.Layer(), help="Number, name of a module, or all (--teacher: default).")
@data_option
@own_option
@rows_options
@option("--grid", nargs=2, type=COUNT, help="pairwise: positions; default: up to 16 16.")
@option(
    "--dtype",
    type=Choice(choices.ROW_DTYPES),
    help="Default: float16; int8 takes half of it; compmul: float32.",
)
@option(
    "--energy",
    type=FloatRange(0, 1, min_open=True),
    help="Share of ||G||^2 that lowrank keeps; default: 0.9999.",
)
@option("--rank", type=COUNT, help="Rank of lowrank, instead of --energy.")
@precision_option
@views_option(help="Augmented views of each training clip; default: none.")
@option(
    "--teacher-control",
    type=Choice(choices.CONTROLS),
    help="A control instead of the teacher: shuffled channels, untrained weights, or a mean Gram.",
)
@option("--control-seed", type=SEED, default=0, help="Seed of the controls permuted and random.")
@seed_option(help="Seed of the views.")
@batch_option(default=32)
@device_option
@scheduler_option
@flag_option("--check-all", help="Read every byte of existing layers, even of those above 8 GB.")
@flag_option("--dry-run", help="Estimate size, time and break-even; build nothing.")
@option("--name", help="Name of the cache (default: STORE--CKPT or STORE--TEACHER).")
@common_options
def cache_grams(common: Context, dry_run: bool, **options: Any) -> None:
    """Run a teacher, CKPT or TEACHER, over a store once, and store its Gram matrices."""
    from antigram.studies.caching import cache_grams as run
    from antigram.studies.caching import estimate_grams
    from antigram.studies.text import built_text, estimate_text

    if dry_run:
        del options["check_all"], options["scheduler"]
        found = estimate_grams(common.workspace, **options, on_message=common.on_message)
        common.answer(found, estimate_text(found))
        return
    with common.progress() as shown:
        built = run(common.workspace, **options, **shown)
    if not built.computed:
        common.on_message(f"{built.path.stem}: already there, with these keys; nothing to do")
    content = built.to_json()
    common.answer(content, built_text(content))


@app.command()
@layers_option(required=True, type=console.Layer(), help="Number, name of a module, or all.")
@data_option
@task_option
@ckpt_option(help="The teacher, for its architecture and width.")
@arch_option
@width_option
@rows_options
@option("--rank", type=COUNT, help="Rank of lowrank.")
@shown_option("--dtype", type=Choice(choices.ROW_DTYPES), default="float16")
@shown_option("--nets", type=COUNT, default=1, help="Number of teachers.")
@batch_option(default=13)
@precision_option
@common_options
def plan(common: Context, **options: Any) -> None:
    """Estimate a training: device memory and FLOPs of a step, and the size of its cache."""
    from antigram.studies.plan import plan as run
    from antigram.studies.text import budget_text

    found = run(common.workspace, **options, on_message=common.on_message)
    common.answer(found, budget_text(found))


@app.command()
@option("--mode", type=Choice(choices.MODES), required=True)
@data_option
@task_option
@option("--ckpt", "ckpts", multiple=True, type=PATH)
@option("--cache", "caches", multiple=True, help="Default: the store's only or latest cache.")
@option("--against", help="With dann and coral: label that the student's maps should not reveal.")
@layers_option(
    type=console.Layer(of_source=True),
    help="Layer(s) compared with the teacher, e.g. 5, layer3.1 or emo:5, or STUDENT=TEACHER where "
    "the two differ; with --mode frozen, the last frozen layer.",
)
@option("--tap", type=Choice(choices.TAPS), help="Default: the cache's, or relu.")
@option(
    "--beta",
    "betas",
    multiple=True,
    type=console.Beta(),
    help="Weight of the AT loss, or of that against a label, or NAME:BETA of one teacher's; "
    "default: 1; below 0, AT rewards similarity.",
)
@option("--aggregation", type=Choice(choices.AGGREGATIONS), help="Default: the cache's, or gram.")
@option("--similarity", type=Choice(choices.SIMILARITIES), help="Default: cos2; pairwise: cka.")
@shown_option(
    "--loss",
    type=Choice(choices.LOSSES),
    default="paper",
    help="released: as in the paper's code; with --mode online only.",
)
@option(
    "--init",
    type=PATH,
    multiple=True,
    help="Checkpoint whose convolutions are the initial weights; torchvision: its initial weights "
    "in narrow VGGs, too.",
)
@arch_option
@width_option
@option("--epochs", type=COUNT, help="Default: 50; with --resume, as in the run.")
@option("--patience", type=COUNT, help="Default: 5; with --resume, as in the run.")
@batch_option(default=13, help="Segments in a step.")
@shown_option("--lr", type=ABOVE_0, default=5e-4)
@option("--dropout", type=SHARE, help="Before linear layers; default: 0.5.")
@shown_option(
    "--weight-decay", type=FloatRange(0, 100), default=0.0, help="Weight decay as in AdamW."
)
@optimiser_options
@seed_option()
@flag_option("--shuffle-labels", help="A control: permute the labels of training and validation.")
@flag_option("--augment", help="Masks, shifts and gains; with a cache made with --views.")
@views_option(help="With --augment: views to cycle through; default: new ones each epoch.")
@device_option
@precision_option
@option(
    "--device-memory",
    type=FloatRange(0, 1e6, max_open=True),
    help="GB of GPU memory for data; default: half of the free memory; 0: none.",
)
@local_cache_options
@option("--max-steps", type=COUNT_OR_0, default=0, help="Stop after N steps; 0: no limit.")
@flag_option("--resume", help="Continue an interrupted run.")
@flag_option("--keep-resume", help="Keep last.pt, so that the run can get more --epochs.")
@option(
    "--report/--no-report", default=True, help="Write curves and report.html (default), or not."
)
@option("--name", help="Name of the run (default: MODE-STORE-seedN).")
@option("--save", type=PATH, help="Copy the best weights to this file.")
@config_options
@common_options
def train(common: Context, device_memory: float | None, print_config: bool, **options: Any) -> None:
    """Train a student on the segments of a store, with or without anti-transfer."""
    if print_config:
        from antigram.studies.train_file import config_answer

        about = {p.name: p.help for p in train.params if isinstance(p, click.Option)}
        common.answer(*config_answer({**options, "device_memory": device_memory}, about))
        return
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
@argument("names", nargs=-1)
@option("--sample", type=COUNT, help="Read N chunks of each store and layer, and sizes of all.")
@option("--recompute", type=COUNT, help="Recompute this many segments with the teacher.")
@ckpt_option(help="The teacher, for --recompute.")
@teacher_options
@option("--data", help="The store, for --recompute; default: the cache's.")
@own_option
@device_option
@scheduler_option
@common_options
def verify(common: Context, **options: Any) -> int:
    """Read every byte of stores, caches, runs, FILE.pt or FILE.h5; exit 3 if any is damaged."""
    from antigram.studies.text import verified_text
    from antigram.studies.verify import verified_json, verify_named

    done = verify_named(
        common.workspace,
        **options,
        on_verified=lambda each: common.on_message(each.line()),
        on_message=common.on_message,
    )
    content = verified_json(done)
    common.answer(content, verified_text(content))
    return 0 if content["ok"] else 3


@app.command("export")
@argument("name")
@option("--to", "goal", type=PATH, required=True, help="FILE.h5")
@common_options
def export_(common: Context, name: str, goal: Path) -> None:
    """Write the store or cache NAME as one HDF5 file, with its checksums."""
    from antigram.studies.exchanging import export

    with common.progress() as shown:
        done = export(common.workspace, name, goal, on_progress=shown["on_progress"])
    common.answer(done.to_json(), f"{done.file}: {done.bytes / 1e6:.1f} MB")


@app.command("import")
@argument("file", type=PATH)
@option("--name", help="Name of the store or cache (default: name of the file).")
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
@flag_option("--dry-run", help="Only list what would be removed.")
@common_options
def clean(common: Context, dry_run: bool) -> None:
    """Remove leftovers of killed commands, unfinished work included, but nothing in use."""
    from antigram.studies.leftovers import clean as run

    done = run(common.workspace, dry_run=dry_run)
    lines = done.lines("would be removed" if dry_run else "removed")
    common.answer({"dry_run": dry_run, **done.to_json()}, "\n".join(lines))


@app.command()
@option("--report", type=PATH, default=Path("report.html"))
@shown_option("--width", type=int, default=4)
@shown_option("--epochs", type=COUNT, default=12)
@seed_option()
@common_options
def demo(common: Context, **options: Any) -> None:
    """Run the complete chain on synthesised speech, on a CPU, in minutes, and write a report."""
    from antigram.studies.compare.texts import compared_text
    from antigram.studies.demo import run_demo

    with common.progress() as shown:
        content = run_demo(common.workspace, **options, **shown)
    common.answer(content, compared_text(content))


for _command in (*commands.COMMANDS, *model_commands.COMMANDS):
    app.add_command(_command)


def main() -> None:
    """Run a command; an expected failure becomes one line and an exit code."""
    sys.exit(console.run(app))


if __name__ == "__main__":
    main()
