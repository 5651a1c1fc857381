"""The command line: parse, build objects, call, print. No numerics.

The only module that knows all three packages. torch takes seconds to import, so that each command
imports what it needs; workers of `prepare` import this file, and must start fast.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import click

from antigram.model.choices import (
    AGGREGATIONS,
    ARCHS,
    CODECS,
    DTYPES,
    LOSSES,
    MODES,
    PRECISIONS,
    SIMILARITIES,
    TAPS,
    Aggregation,
    ArchName,
    Codec,
    Dtype,
    Precision,
    Tap,
)
from antigram.pipeline.choices import LastWindow, Noise, SnrMode, Split
from antigram.pipeline.execution.terminal import safe, safe_json

if TYPE_CHECKING:
    import torch

    from antigram.model.training.evaluate import Scores
    from antigram.pipeline.storage.manifest import Problem
    from antigram.pipeline.workspace import Workspace

__all__ = ["app", "main"]

_LEADS = os.environ.get("RANK", "0") == "0"  # torchrun's
# Errors of the system that are no defect of ours even where it names no file.
_SYSTEM_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO)
_LESS_MEMORY = (
    "Free some, or take a smaller --batch-size, --width or fewer --workers; "
    "`antigram plan` tells what a step takes."
)
_SHARE = click.FloatRange(0, 1, max_open=True)
_ABOVE_0 = click.FloatRange(0, math.inf, min_open=True, max_open=True)
_SECONDS = click.FloatRange(0, 3600, min_open=True)
_SEED = click.IntRange(0, 2**63 - 1)
_WIDTH = click.IntRange(1, 1024)


class _Pattern(click.ParamType[str]):
    """Text of one form, refused as it is parsed: before anything slow is imported."""

    pattern: str
    wanted: str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is, if it has the form."""
        if re.fullmatch(self.pattern, value, re.ASCII) is None:
            self.fail(f"{value!r} is not {self.wanted}.", param, ctx)
        return str(value)


class Layer(_Pattern):
    """``5`` or ``all``; with ``of_source`` also ``NAME:5``."""

    name = "layer"
    wanted = "the number of a convolution layer, or all"

    def __init__(self, *, of_source: bool = False) -> None:
        self.pattern = rf"{'(.+:)?' if of_source else ''}(\d{{1,3}}|all)"


class Beta(_Pattern):
    """``0.5`` or ``NAME:0.5``."""

    name = "beta"
    pattern = r"(.+:)?[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?"
    wanted = "a number, or NAME:NUMBER"


class Device(_Pattern):
    """A device as torch names it, or ``auto``."""

    name = "device"
    pattern = r"auto|cpu|cuda(:\d{1,2})?"
    wanted = "cpu, cuda, cuda:1 or auto"


@dataclass(slots=True)
class Context:
    """What every command knows."""

    workspace: Workspace
    json: bool

    def on_message(self, text: str) -> None:
        """A line for people, on stderr; of a job of torchrun, the first process speaks for all."""
        if _LEADS:
            click.echo(safe(text), err=True)

    def answer(self, content: Mapping[str, Any], text: str) -> None:
        """The result: JSON or text on stdout."""
        if _LEADS:
            click.echo(safe_json(content) if self.json else safe(text))


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take --workspace, --json and -v after the command's name, too."""

    @click.option("--workspace", type=click.Path(path_type=Path), hidden=True)
    @click.option("--json", "as_json", is_flag=True, hidden=True)
    @click.option("-v", "--verbose", is_flag=True, hidden=True)
    @wraps(command)
    def inner(
        ctx: click.Context, workspace: Path | None, as_json: bool, verbose: bool, **kwargs: Any
    ) -> Any:
        from antigram.pipeline.workspace import Workspace

        common: Context = ctx.obj
        if workspace is not None:
            common.workspace = Workspace(workspace)
        common.json = common.json or as_json
        ctx.find_root().params["as_json"] = common.json
        if verbose:
            logging.basicConfig(level=logging.DEBUG)
        return command(common, **kwargs)

    return click.pass_context(inner)


class App(click.Group):
    """The commands. Empty text is no value of any option: ``--source "$UNSET"`` is a mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is empty, name the option, and parse the rest."""
        for before, text in zip(["", *args], args, strict=False):
            is_option = text.startswith("--")
            option, equals, value = text.partition("=") if is_option else (before, "=", text)
            if equals and not value.strip():
                name = option if option.startswith("-") else "an argument"
                raise click.UsageError(f"{name} is empty; give a value, or leave it out.", ctx)
        return super().parse_args(ctx, args)


@click.group(
    cls=App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--workspace", type=click.Path(path_type=Path), help="Default: ./workspace.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.version_option(package_name="antigram")
@click.pass_context
def app(ctx: click.Context, workspace: Path | None, as_json: bool, verbose: bool) -> None:
    """Anti-transfer learning on audio, with the teacher's Grams cached on disk."""
    from antigram.pipeline.workspace import Workspace

    root = workspace or Path(os.environ.get("ANTIGRAM_WORKSPACE") or "workspace")
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING)
    ctx.obj = Context(Workspace(root), as_json)


@app.command()
@click.argument("corpus")
@click.option("--source", type=click.Path(path_type=Path), help="The corpus, or the folder above.")
@click.option("--preset", help="paper: the paper's setting; options given beside it win.")
@click.option(
    "--noise",
    type=click.Choice(get_args(Noise)),
    help="SNR 20 to 40 dB (low), 0 to 10 dB (high); default: none (ms-snsd: low).",
)
@click.option(
    "--noise-source", type=click.Path(path_type=Path), help="MS-SNSD, or its noise_train."
)
@click.option(
    "--snr-mode",
    type=click.Choice(get_args(SnrMode)),
    help="exact (default), or released: half the SNR in dB, as in the paper's code.",
)
@click.option("--seconds", type=_SECONDS, help="Length of a segment; default: the corpus's.")
@click.option("--overlap", type=_SHARE, help="Share of a segment that the next repeats.")
@click.option(
    "--last-window",
    type=click.Choice(get_args(LastWindow)),
    help="Zero-pad a recording's last segment (default), or let it end with the recording.",
)
@click.option("--split", help="random (default), official or by:LABEL.")
@click.option(
    "--within",
    help="Take only the training recordings of this store, divided anew: for a teacher that must "
    "not hear the test recordings.",
)
@click.option(
    "--limit-per-class",
    type=click.IntRange(0),
    help="Recordings of each class (librispeech: words), drawn by the seed; 0: all.",
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    help="Recordings in all (librispeech: words), drawn by the seed; 0: all.",
)
@click.option(
    "--balance", is_flag=True, default=None, help="Balance classes to the size of the smallest."
)
@click.option("--seed", type=_SEED, help="Default: 0.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the store; default: float32.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; default: the cores.")
@click.option(
    "--max-rejected",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Unusable recordings and segments that may be left out.",
)
@click.option(
    "--check-sources",
    is_flag=True,
    help="Read all recordings of a store that is there, for edits that kept their size and time.",
)
@click.option("--name", help="Of the store; default: the corpus and what differs.")
@click.option("--labels", help="folder: label columns of metadata.csv, like mood,singer.")
@click.option(
    "--main-label", help="folder: its main label; default: the column label, or the first of them."
)
@click.option("--words", help="gsc: digits (default), all, or a list; librispeech: how many.")
@click.option("--unit", help="librispeech: word (default) or utterance.")
@click.option("--subset", help="librispeech: all (default), or train-clean-100 and so on.")
@click.option("--hours", help="ms-snsd: of mixtures; default: 1.")
@click.option("--clean-source", type=click.Path(path_type=Path), help="ms-snsd: clean speech.")
@_common
def prepare(
    common: Context,
    corpus: str,
    source: Path | None,
    preset: str | None,
    noise_source: Path | None,
    clean_source: Path | None,
    workers: int | None,
    max_rejected: int,
    check_sources: bool,
    name: str | None,
    within: str | None,
    **asked: Any,
) -> None:
    """Turn CORPUS into a feature store: normalised spectrograms of its recordings' segments.

    A recording longer than a segment is cut or segmented, as its corpus has it; noise may be mixed
    in.
    """
    from antigram.pipeline.audio.noise import NoiseBank, noise_files
    from antigram.pipeline.corpora import find_corpus
    from antigram.pipeline.corpus import CorpusError, locate
    from antigram.pipeline.execution.progress import Progress
    from antigram.pipeline.features.naming import recipe_for, store_name
    from antigram.pipeline.features.preparation import prepare as run
    from antigram.pipeline.features.store import FeatureStore
    from antigram.pipeline.features.within import training_of

    given = {key: value for key, value in asked.items() if value is not None}
    adapter = find_corpus(corpus)
    adapter, recipe = recipe_for(adapter, {**adapter.preset(preset), **given})
    only = None
    if within is not None:
        only = training_of(FeatureStore(common.workspace.store(within, common.on_message)))
        recipe = replace(recipe, within=only.fingerprint)
    workspace, cores = common.workspace, workers or len(os.sched_getaffinity(0))
    with Progress() as progress:
        candidates = workspace.corpus_candidates(corpus, source)
        missing = source is None and not any(path.is_dir() for path in candidates)
        if adapter.synthesise is not None and missing:
            adapter.synthesise(candidates[-1], workers=cores, on_progress=progress.on_progress)
        home = locate(adapter, candidates)
        progress.on_message(f"{corpus}: {home}")
        recordings = None
        if recipe.noise != "none":
            places = workspace.corpus_candidates("ms-snsd", noise_source)
            if adapter.has_noise and noise_source is None:
                places = [home]
            folder, recordings = noise_files(places)
            progress.on_message(f"noise: {len(recordings)} classes in {folder}")
            recipe = replace(recipe, noise_files=NoiseBank.digest_of(recordings))
        if adapter.list_mixtures is not None:
            home = clean_source or home / "clean_train"
            progress.on_message(f"clean speech: {home}")
        elif clean_source is not None:
            raise CorpusError(f"--clean-source: {corpus} is not mixed from clean speech")
        target = workspace.features / f"{_plain(name or store_name(adapter, recipe))}.zarr"
        done = run(
            adapter,
            home,
            recipe,
            target,
            noise=recordings,
            only=only,
            workers=cores,
            max_rejected=max_rejected,
            check_all=check_sources,
            on_progress=progress.on_progress,
            on_message=progress.on_message,
        )
    content = done.to_json()
    counts = ", ".join(
        f"{n} {split} segments of {content['recordings'][split]} recordings"
        for split, n in content["clips"].items()
    )
    if done.left_alone:
        common.on_message(f"{done.store.name}: already there, with this recipe; nothing to do")
    for line in done.summary.lines():
        common.on_message(line)
    left_out = "".join(f"\n  skipped: {n} x {why}" for why, n in content["skipped"].items())
    bad = "".join(f"\n  rejected: {r['source']}: {r['reason']}" for r in content["rejected"])
    common.answer(
        content,
        f"{done.store.path}: {counts}; {content['shape'][0]} frames x {content['shape'][1]} "
        f"frequencies; {content['clips_per_second']:g} segments/s{left_out}{bad}",
    )


@app.command()
@_common
def corpora(common: Context) -> None:
    """The corpora: labels, licence, citation, presets, and whether each is there."""
    from antigram.studies.status import describe_corpora

    found = describe_corpora(common.workspace)
    lines = []
    for entry in found:
        there = entry["path"] or f"not there; looked in {', '.join(entry['looked_in'])}"
        lines += [
            f"{entry['name']}: {', '.join(entry['labels']) or 'labels of your own'}; "
            f"{entry['seconds']:g} s; {entry['licence']}",
            f"  {there}",
            f"  {entry['how_to_get']}",
            f"  cite: {entry['citation']}",
        ]
        lines += [f"  --preset {name}: {each}" for name, each in entry["presets"].items()]
    common.answer({"corpora": found}, "\n".join(lines))


@app.command()
@click.argument("corpus")
@click.option("--subset", help="librispeech: train-clean-100 (default), dev-clean and so on.")
@_common
def download(common: Context, corpus: str, subset: str | None) -> None:
    """Fetch CORPUS, check it, and unpack it to where `prepare` finds it; resumes after a cut."""
    from antigram.pipeline.corpora import find_corpus
    from antigram.pipeline.download.corpora import download as run
    from antigram.pipeline.execution.progress import Progress

    adapter = find_corpus(corpus)
    with Progress() as progress:
        target = common.workspace.root / "corpora" / corpus
        done = run(
            adapter,
            target,
            subset=subset,
            on_progress=progress.on_progress,
            on_message=progress.on_message,
        )
    content = done.to_json()
    hashes = "".join(f"\n  SHA-256 {value}  {name}" for name, value in content["sha256"].items())
    vouched = "as published" if content["verified"] else "no hash is published"
    text = "already there" if done.left_alone else f"{content['bytes']} bytes, {vouched}{hashes}"
    common.answer(content, f"{done.path}: {text}")


@app.command("cache-grams")
@click.option("--ckpt", type=click.Path(path_type=Path), required=True, help="The teacher.")
@click.option(
    "--layer", "layers", multiple=True, required=True, type=Layer(), help="1 to 13, or all."
)
@click.option("--data", help="The store; default: the only one, or the one prepared last.")
@click.option("--tap", type=click.Choice(TAPS), default="relu", show_default=True)
@click.option("--aggregation", type=click.Choice(AGGREGATIONS), default="gram", show_default=True)
@click.option("--codec", type=click.Choice(("auto", *CODECS)), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), help="Default: float16; with compmul float32.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of ||G||^2 that lowrank keeps; default: 0.9999.",
)
@click.option("--rank", type=click.IntRange(1), help="Of lowrank, in place of --energy.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="32", show_default=True)
@click.option(
    "--views", type=click.IntRange(1), help="Augmented views of each training clip; default: none."
)
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Of the views.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", type=Device(), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print size, time and break-even; make nothing.")
@click.option("--name", help="Of the cache; default: STORE--CKPT.")
@_common
def cache_grams(
    common: Context,
    ckpt: Path,
    layers: tuple[str, ...],
    data: str | None,
    tap: Tap,
    aggregation: Aggregation,
    codec: Codec | Literal["auto"],
    dtype: Dtype | None,
    energy: float | None,
    rank: int | None,
    precision: Precision,
    views: int | None,
    seed: int,
    batch_size: int,
    device: str,
    dry_run: bool,
    name: str | None,
) -> None:
    """Run the teacher of CKPT over a store once, and keep its Gram matrices."""
    from antigram.cache.build import build_cache
    from antigram.cache.estimate import estimate
    from antigram.cache.plan import plan_layers
    from antigram.model.loss.at_loss import check_combination
    from antigram.model.loss.sources import TapSpec
    from antigram.model.training.distributed import distributed_context
    from antigram.model.training.guards import load_teacher
    from antigram.pipeline.audio.augmentation import Views
    from antigram.pipeline.execution.progress import Progress
    from antigram.pipeline.features.store import FeatureStore
    from antigram.studies.job import layer_numbers

    teacher = load_teacher(ckpt, common.on_message)
    store = FeatureStore(common.workspace.store(data, common.on_message))
    numbers = layer_numbers(layers, teacher.arch)
    check_combination(aggregation, tap, "cos2", numbers)
    if aggregation == "compmul" and dtype == "float16":
        common.on_message(
            "compmul: its values differ so little that float16 costs 1 % of the gradient"
        )
    dtype = dtype or ("float32" if aggregation == "compmul" else "float16")
    spec = TapSpec(arch=teacher.arch, layers=numbers, tap=tap, aggregation=aggregation)
    plans = plan_layers(
        store,
        teacher,
        spec,
        codec=codec,
        dtype=dtype,
        energy=energy,
        rank=rank,
        precision=precision,
        views=None if views is None else Views.for_shape(store.shape, count=views, seed=seed),
    )
    default = f"{store.name}--{ckpt.stem}"
    target = common.workspace.grams / f"{_plain(name or default)}.zarr"
    if dry_run:
        place = _device(device)
        found = estimate(plans, store, teacher, batch_clips=batch_size, device=place)
        content = {"dry_run": True, "cache": str(target), "name": target.stem, **found}
        common.answer(content, _estimate_text(target, found, str(place)))
        return
    place = _device(device)
    with ExitStack() as held:
        distributed = held.enter_context(distributed_context(place))
        progress = held.enter_context(Progress())
        built = build_cache(
            store,
            teacher,
            plans,
            target,
            made_from={"store": store.name, "checkpoint": ckpt.stem},
            batch_clips=batch_size,
            device=distributed.device(place),
            on_progress=progress.on_progress if distributed.leads else lambda *_: None,
            distributed=distributed,
        )
    if not built.computed:
        common.on_message(f"{target.stem}: already there, with these keys; nothing to do")
    each = "".join(f"\n  layer {n}: {_layer_text(d)}" for n, d in built.to_json()["layers"].items())
    common.answer(
        built.to_json(), f"{built.path}: {built.clips} clips, {built.seconds:.1f} s{each}"
    )


def _layer_text(layer: Mapping[str, Any]) -> str:
    text = f"{layer['codec']} {layer['dtype']}, {layer['bytes_per_clip']} bytes a clip"
    if layer["codec"] != "lowrank":
        return text
    return (
        f"{text}; rank {layer['rank']}, energy kept: mean {layer['energy_mean']:.6f}, least "
        f"{layer['energy_least']:.6f}, {layer['energy_short']} clips short; largest cosine error "
        f"on a sample {layer['cosine_error_sample']:.1e}, at most {layer['cosine_error_bound']:.1e}"
    )


@app.command()
@click.option(
    "--layer", "layers", multiple=True, required=True, type=Layer(), help="1 to 13, or all."
)
@click.option("--data", help="The store; default: the only one, or the one prepared last.")
@click.option("--task", help="The label to learn; default: the store's main one.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="The teacher, for its shape.")
@click.option("--arch", type=click.Choice(ARCHS), help="Default: the teacher's, or vgg16.")
@click.option("--width", type=_WIDTH, help="64 is the real VGG; default: the teacher's, or 64.")
@click.option("--tap", type=click.Choice(TAPS), default="relu", show_default=True)
@click.option("--aggregation", type=click.Choice(AGGREGATIONS), default="gram", show_default=True)
@click.option("--codec", type=click.Choice(("auto", *CODECS)), default="auto", show_default=True)
@click.option("--rank", type=click.IntRange(1), help="Of lowrank.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float16", show_default=True)
@click.option("--nets", type=click.IntRange(1), default=1, show_default=True, help="Teachers.")
@click.option("--batch-size", type=click.IntRange(1), default=13, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="32", show_default=True)
@_common
def plan(
    common: Context,
    layers: tuple[str, ...],
    data: str | None,
    task: str | None,
    ckpt: Path | None,
    arch: ArchName | None,
    width: int | None,
    tap: Tap,
    aggregation: Aggregation,
    codec: Codec | Literal["auto"],
    rank: int | None,
    dtype: Dtype,
    nets: int,
    batch_size: int,
    precision: Precision,
) -> None:
    """What a training would take: device memory and FLOPs of a step, and the cache's size."""
    from antigram.cache.plan import plan_layers
    from antigram.model.loss.sources import TapSpec
    from antigram.model.nets.arch import Arch
    from antigram.model.training.checkpoint import open_teacher
    from antigram.pipeline.errors import InputError
    from antigram.pipeline.features.store import FeatureStore
    from antigram.studies.job import layer_numbers
    from antigram.studies.plan import bare_net, budget

    if codec == "lowrank" and rank is None:
        raise InputError("--codec lowrank: its rank is found by running the net; name a --rank")
    shape = open_teacher(ckpt).arch if ckpt is not None else Arch()
    shape = Arch(arch or shape.name, shape.width if width is None else width)
    store = FeatureStore(common.workspace.store(data, common.on_message))
    classes = len(store.classes[task or store.main_label]) if task in (None, *store.classes) else 0
    if not classes:
        store.labels(task or "")  # says which there are
    spec = TapSpec(
        arch=shape, layers=layer_numbers(layers, shape), tap=tap, aggregation=aggregation
    )
    plans = plan_layers(store, bare_net(shape), spec, codec=codec, dtype=dtype, rank=rank)
    found = budget(
        store,
        shape,
        plans,
        classes=classes,
        batch_clips=batch_size,
        nets=nets,
        precision=precision,
    )
    common.answer(found, _budget_text(found))


def _budget_text(found: Mapping[str, Any]) -> str:
    from antigram.pipeline.storage.files import size_text

    base = found["baseline"]
    lines = [
        f"{found['store']}: batches of {found['batch_clips']}, {found['nets']} teacher(s)",
        f"baseline    {size_text(base['memory']):>9}          {base['flops'] / 1e9:9.0f} GFLOP",
    ]
    for number, layer in found["layers"].items():
        cache, pays = layer["cache"], layer["cache"]["break_even_epochs"]
        after = "never" if pays is None else f"after {pays:.2f} epochs"
        lines.append(
            f"layer {number}: a cache of {cache['codec']} {cache['dtype']} takes "
            f"{size_text(cache['bytes'])} ({cache['bytes_per_clip']} bytes a clip) and pays off "
            f"against online {after}; the paper's equation 4: "
            f"{size_text(layer['paper_eq4_bytes'])} beside the training"
        )
        lines += [
            f"  {arm:9s} {size_text(layer[arm]['memory']):>9} "
            f"{layer[arm]['memory_over_baseline']:6.3f} x "
            f"{layer[arm]['flops'] / 1e9:9.0f} GFLOP {layer[arm]['flops_over_baseline']:6.3f} x"
            for arm in ("cached", "online", "released")
        ]
    return "\n".join(lines)


def _estimate_text(target: Path, found: Mapping[str, Any], device: str) -> str:
    lines = [
        f"{target}: {found['clips']} clips, {found['bytes'] / 1e6:.1f} MB, "
        f"{found['seconds']:.0f} s on {device}; online: {found['online_seconds_per_epoch']:.0f} s "
        "of the teacher in each epoch"
    ]
    for number, layer in found["layers"].items():
        size = layer["bytes_per_clip"]
        wide = "size known after a pilot" if size is None else f"{size} bytes a clip"
        epochs = layer["break_even_epochs"]
        pays = "never" if epochs is None else f"after {epochs:.2f} epochs"
        lines.append(
            f"  layer {number}: {layer['codec']} {layer['dtype']}, {wide}, "
            f"{layer['seconds']:.0f} s alone; pays off against online {pays}"
        )
    return "\n".join(lines)


@app.command()
@click.option("--mode", type=click.Choice(MODES), required=True)
@click.option("--data", help="The store; default: the only one, or the one prepared last.")
@click.option("--task", help="The label to learn; default: the store's main one.")
@click.option("--ckpt", "ckpts", multiple=True, type=click.Path(path_type=Path))
@click.option("--cache", "caches", multiple=True, help="Default: the store's only or latest.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    type=Layer(of_source=True),
    help="Layer(s) compared with the teacher, e.g. 5 or emo:5; with --mode frozen, the last "
    "frozen layer.",
)
@click.option("--tap", type=click.Choice(TAPS), help="Default: the cache's, or relu.")
@click.option(
    "--beta",
    "betas",
    multiple=True,
    type=Beta(),
    help="Weight of the AT loss, or NAME:BETA of one teacher's; default: 1; below 0 it rewards "
    "similarity.",
)
@click.option(
    "--aggregation", type=click.Choice(AGGREGATIONS), help="Default: the cache's, or gram."
)
@click.option("--similarity", type=click.Choice(SIMILARITIES), default="cos2", show_default=True)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    default="paper",
    show_default=True,
    help="released: as in the paper's code; with --mode online only.",
)
@click.option("--init", type=click.Path(path_type=Path), help="Begin with its convolutions.")
@click.option("--arch", type=click.Choice(ARCHS), help="Default: the teacher's, or vgg16.")
@click.option("--width", type=_WIDTH, help="64 is the real VGG; default: the teacher's, or 64.")
@click.option("--epochs", type=click.IntRange(1), help="Default: 50, or the resumed run's.")
@click.option("--patience", type=click.IntRange(1), help="Default: 5, or the resumed run's.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=13,
    show_default=True,
    help="Segments in a step.",
)
@click.option("--lr", type=_ABOVE_0, default=5e-4, show_default=True)
@click.option("--dropout", type=_SHARE, default=0.5, show_default=True)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option("--augment", is_flag=True, help="Masks, shifts, gain; cached: needs --views there.")
@click.option(
    "--views",
    type=click.IntRange(1),
    help="With --augment: views to cycle through; default: new ones each epoch.",
)
@click.option("--device", type=Device(), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="32", show_default=True)
@click.option(
    "--device-memory",
    type=click.FloatRange(0, 1e6, max_open=True),
    help="GB of a GPU for data; default: half; 0: none.",
)
@click.option(
    "--max-steps", type=click.IntRange(0), default=0, help="Stop after N steps; 0: no limit."
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--keep-resume", is_flag=True, help="Keep last.pt, to go on with more --epochs.")
@click.option("--name", help="Of the run; default: MODE-STORE-seedN.")
@click.option("--save", type=click.Path(path_type=Path), help="Copy the best weights there.")
@_common
def train(
    common: Context,
    data: str | None,
    name: str | None,
    device: str,
    resume: bool,
    keep_resume: bool,
    save: Path | None,
    init: Path | None,
    device_memory: float | None,
    **options: Any,
) -> None:
    """Train a student on the segments of a store, with or without anti-transfer."""
    from antigram.pipeline.storage.publish import check_goal
    from antigram.studies.options import Options, check_options

    own = {key: options.pop(key) for key in Options.__slots__ if key in options}
    asked = Options(data=data, **own)
    options["batch_clips"] = options.pop("batch_size")
    asked_ends = {key: options[key] for key in ("epochs", "patience")}
    options = {key: value for key, value in options.items() if value is not None}
    check_options(asked, options)
    if save is not None:
        check_goal("--save", save)

    import torch

    from antigram.model.training.distributed import distributed_context
    from antigram.model.training.guards import load_teacher
    from antigram.model.training.resume import keep_ends
    from antigram.model.training.train import build_student, copy_best
    from antigram.model.training.train import train as run
    from antigram.model.training.worth import accuracies_text
    from antigram.pipeline.errors import InputError
    from antigram.pipeline.execution.process import keep_freed_memory
    from antigram.pipeline.workspace import claimed_run
    from antigram.studies.curves import draw_run
    from antigram.studies.display import TrainingDisplay
    from antigram.studies.job import resolve

    place = _device(device)
    if place.type == "cpu":
        keep_freed_memory(of_any_size=True)
    with ExitStack() as held:
        distributed = held.enter_context(distributed_context(place))
        place = distributed.device(place)
        job = resolve(common.workspace, asked, options, place, common.on_message)
        config, store = job.config, job.store
        if init is not None and config.mode in ("wi", "frozen"):
            raise InputError(f"--init: --mode {config.mode} begins with --ckpt; use one of the two")
        begin = load_teacher(init, common.on_message).state if init is not None else None
        if config.mode in ("wi", "frozen") and job.teacher is not None:
            begin = job.teacher.state
        net = build_student(config, len(store.classes[config.task]), begin)
        default = f"{config.mode}-{store.name}-seed{config.seed}"
        runs, named = common.workspace.runs, None if name is None else _plain(name)
        if distributed.leads:
            folder = held.enter_context(claimed_run(runs, named, default, resume=resume))
        folder = Path(distributed.share(str(folder if distributed.leads else "")))
        if resume:
            config = keep_ends(folder, config, asked_ends)
        quiet = not distributed.leads
        with TrainingDisplay(config.epochs) as display:
            try:
                result = run(
                    net,
                    store,
                    job.sources,
                    config,
                    folder,
                    device=place,
                    on_progress=(lambda *_: None) if quiet else display.on_progress,
                    resume=resume,
                    keep_resume=keep_resume,
                    distributed=distributed,
                    device_memory=None if device_memory is None else int(device_memory * 1e9),
                    on_message=(lambda _: None) if quiet else display.on_message,
                )
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{place}: out of memory ({str(error).partition('.')[0]}). Take a smaller "
                    "--batch-size, --device-memory 0 or --precision bf16; `antigram plan` tells "
                    "what a step takes."
                ) from None
            except KeyboardInterrupt:
                display.on_message(
                    f"stopped; the same command with --resume --name {folder.name} goes on"
                )
                raise
    if distributed.leads:
        draw_run(folder)
        if save is not None:
            copy_best(folder, save)
    common.answer(
        result,
        f"{folder}: accuracy {accuracies_text(result)}; {result['epochs']} epochs, best "
        f"{result['best_epoch']}; "
        f"{result['seconds_per_step']:.3f} s a step, data wait {result['data_wait_fraction']:.1%}",
    )


@app.command()
@click.option("--ckpt", type=click.Path(path_type=Path), required=True, help="The checkpoint.")
@click.option("--data", help="The store; default: the only one, or the one prepared last.")
@click.option(
    "--split",
    type=click.Choice(get_args(Split)),
    default="test",
    show_default=True,
)
@click.option("--task", help="The store's label to score; default: the checkpoint's task.")
@click.option("--device", type=Device(), default="auto", show_default=True)
@_common
def evaluate(
    common: Context, ckpt: Path, data: str | None, split: str, task: str | None, device: str
) -> None:
    """Accuracy, recalls and confusion matrix of a checkpoint on a split of a store.

    Segments are scored one by one; recordings by the mean of their segments' log-probabilities.
    """
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.evaluate import evaluate_checkpoint
    from antigram.pipeline.errors import InputError
    from antigram.pipeline.features.store import FeatureStore

    checkpoint = load_checkpoint(ckpt)
    store = FeatureStore(common.workspace.store(data, common.on_message))
    scores = evaluate_checkpoint(
        checkpoint, store, split, task=task, device=_device(device), on_message=common.on_message
    )
    if not scores.segments.count:
        raise InputError(f"{store.path}: no segment in the {split} split")
    common.answer(scores.to_json(), f"{split}: {_scores_text(scores)}")


def _scores_text(scores: Scores) -> str:
    """Accuracies of segments and recordings, and each class's recall and confusion."""
    lines = []
    for what, each in (("segments", scores.segments), ("recordings", scores.recordings)):
        majority = "unknown" if each.majority is None else f"{each.majority:.4f}"
        lines.append(
            f"{each.count} {what}: accuracy {each.accuracy:.4f} (chance {each.chance:.4f}, "
            f"majority {majority}), unweighted average recall {each.unweighted_average_recall:.4f}"
        )
    tally = scores.segments
    width = max(len(name) for name in tally.classes)
    lines.append(f"{'':>{width}}  recall  segments predicted as")
    for (name, r), row in zip(tally.recall.items(), tally.confusion.tolist(), strict=True):
        recall = "-" if r is None else f"{r:.3f}"
        lines.append(f"{name:>{width}}  {recall}  {' '.join(f'{n:4d}' for n in row)}")
    return "\n".join(lines)


@app.command()
@click.option("--ckpt", type=click.Path(path_type=Path), required=True, help="The checkpoint.")
@click.option(
    "--csv", "table", type=click.Path(path_type=Path), help="Also write the segments to this file."
)
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave out files that cannot be used, and list them."
)
@click.option("--device", type=Device(), default="auto", show_default=True)
@click.argument("audio", nargs=-1, required=True, type=click.Path(path_type=Path))
@_common
def predict(
    common: Context,
    ckpt: Path,
    audio: tuple[Path, ...],
    table: Path | None,
    skip_unreadable: bool,
    device: str,
) -> None:
    """Classes of recordings and their segments, with probabilities.

    AUDIO are files, folders (with all audio files below them) or patterns such as 'rec/*.wav'. A
    recording is predicted by the mean of its segments' log-probabilities.
    """
    from antigram.pipeline.audio.find import audio_files
    from antigram.pipeline.execution.progress import Progress
    from antigram.pipeline.table import check_target, csv_table

    if table is not None:
        check_target(table, "--csv")
    files = audio_files(audio)

    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.predict import Recording, about, about_text, columns
    from antigram.model.training.predict import predict as run

    checkpoint = load_checkpoint(ckpt)
    common.on_message(f"{ckpt}: {about_text(checkpoint)}")
    content: dict[str, list[Any]] = {"predictions": [], "recordings": [], "unreadable": []}
    lines: list[str] = []
    with ExitStack() as held:
        progress = held.enter_context(Progress())
        add = None
        if table is not None:
            add = held.enter_context(csv_table(table, columns(checkpoint)))
        for found in run(
            checkpoint,
            files,
            device=_device(device),
            skip_unreadable=skip_unreadable,
            on_progress=progress.on_progress,
        ):
            if not isinstance(found, Recording):
                progress.on_message(f"left out: {found.file}: {found.reason}")
                content["unreadable"].append(found.to_json())
                continue
            if add is not None:
                for segment in found.segments:
                    add(segment.cells())
            if common.json:
                content["predictions"] += [segment.to_json() for segment in found.segments]
                content["recordings"].append(found.prediction.to_json())
            else:
                lines += found.lines()
    common.answer({**content, "checkpoint": about(checkpoint)}, "\n".join(lines))


@app.command()
@click.argument("names", nargs=-1)
@click.option("--recompute", type=click.IntRange(1), help="Run the teacher on so many clips too.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="The teacher, for --recompute.")
@click.option("--data", help="The store, for --recompute; default: the cache's.")
@click.option("--device", type=Device(), default="auto", show_default=True)
@_common
def verify(
    common: Context,
    names: tuple[str, ...],
    recompute: int | None,
    ckpt: Path | None,
    data: str | None,
    device: str,
) -> int:
    """Read every byte of stores, caches, runs, FILE.pt or FILE.h5; exit 3 if any is damaged."""
    from antigram.model.training.run_files import run_state
    from antigram.pipeline.errors import InputError
    from antigram.pipeline.storage.archive import SUFFIXES, verify_archive
    from antigram.pipeline.storage.exchange import verify_export
    from antigram.pipeline.storage.hdf5 import SUFFIX
    from antigram.studies.verify import check_kind, kind_of, verify_cache, verify_run, verify_store

    if recompute and ckpt is None:
        raise InputError("--recompute runs the teacher again: name it with --ckpt")
    workspace = common.workspace
    stores = workspace.members(workspace.features)
    every = [p for f in (workspace.features, workspace.grams) for p in sorted(f.glob("[!.]*.zarr"))]
    every += sorted(p for p in workspace.runs.glob("[!.]*") if p.is_dir())
    chosen = []
    for name in names:
        match = [p for p in every if name in (p.name, p.name.removesuffix(".zarr"))]
        path = Path(name)
        if path.is_dir() or (path.suffix in (SUFFIX, *SUFFIXES) and path.is_file()):
            check_kind(path)
            match = [path]
        if not match:
            known = ", ".join(p.name.removesuffix(".zarr") for p in every) or "nothing"
            raise InputError(f"no store, cache or run is called {name!r}; there is {known}")
        chosen += match
    problems = []
    for path in chosen if names else every:
        kind = kind_of(path)
        found = list(
            verify_run(path)
            if kind == "run"
            else verify_cache(path, stores)
            if kind == "cache"
            else verify_export(path)
            if kind == "export"
            else verify_archive(path)
            if kind == "checkpoint"
            else verify_store(path)
        )
        if kind == "cache" and recompute and not found:
            found = _recomputed(common, path, recompute, ckpt, data, device)
        state = f"; {run_state(path)}" if kind == "run" and not found else ""
        common.on_message(f"{kind} {path}: {f'{len(found)} problems' if found else 'whole'}{state}")
        problems += found
    content = {
        "ok": not problems,
        "problems": [{"path": str(p.path), "problem": p.problem} for p in problems],
        "checked": [str(path) for path in (chosen if names else every)],
    }
    text = "\n".join(f"{p.path}: {p.problem}" for p in problems) or "all whole"
    common.answer(content, text)
    return 3 if problems else 0


@app.command("export")
@click.argument("name")
@click.option("--to", "goal", type=click.Path(path_type=Path), required=True, help="FILE.h5")
@_common
def export_(common: Context, name: str, goal: Path) -> None:
    """Write the store or cache NAME as one HDF5 file, checksums and all."""
    from antigram.pipeline.execution.progress import Progress
    from antigram.pipeline.storage.exchange import export_file

    with Progress() as progress:
        path = _store_or_cache(common, name)
        size = export_file(path, goal, progress.on_progress)
    content = {"file": str(goal), "bytes": size, "exported": str(path)}
    common.answer(content, f"{goal}: {size / 1e6:.1f} MB")


@app.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Default: that of the file.")
@_common
def import_(common: Context, file: Path, name: str | None) -> None:
    """Make a store or cache of what `antigram export` wrote to FILE."""
    from antigram.cache.layer import FORMAT
    from antigram.pipeline.errors import DamagedError, InputError
    from antigram.pipeline.execution.progress import Progress
    from antigram.pipeline.storage.exchange import import_file
    from antigram.pipeline.storage.hdf5 import SUFFIX, read_bytes
    from antigram.pipeline.workspace import locked

    if not file.is_file() or file.suffix != SUFFIX:
        raise InputError(f"{file}: no such file; wanted one that `antigram export` wrote")
    try:
        is_cache = FORMAT.encode() in read_bytes(file / "zarr.json")
    except FileNotFoundError:
        raise DamagedError(f"{file}: its root document is missing. Export it again.") from None
    home = common.workspace.grams if is_cache else common.workspace.features
    goal = home / f"{_plain(name or file.stem)}.zarr"
    with Progress() as progress, locked(goal, "importing"):
        made = import_file(file, goal, progress.on_progress)
    kind = "cache" if is_cache else "store"
    text = f"{goal}: {'imported' if made else 'already there'}"
    common.answer({kind: str(goal), "name": goal.stem, "imported": made}, text)


def _store_or_cache(common: Context, name: str) -> Path:
    from antigram.pipeline.errors import InputError

    workspace = common.workspace
    for folder in (workspace.features, workspace.grams):
        with suppress(InputError):
            return workspace.named(folder, name, "")
    known = [p.stem for f in (workspace.features, workspace.grams) for p in workspace.members(f)]
    raise InputError(f"no store or cache is called {name!r}; there is {', '.join(known) or 'none'}")


def _recomputed(
    common: Context, path: Path, clips: int, ckpt: Path | None, data: str | None, device: str
) -> list[Problem]:
    """Problems that running the teacher again shows."""
    from antigram.cache.recompute import recompute
    from antigram.model.training.checkpoint import open_teacher
    from antigram.pipeline.errors import InputError
    from antigram.pipeline.features.store import FeatureStore
    from antigram.studies.job import store_for

    if ckpt is None:
        raise InputError("--recompute runs the teacher again: name it with --ckpt")
    store = FeatureStore(store_for(common.workspace, data, (str(path),), common.on_message))
    return list(recompute(path, store, open_teacher(ckpt), clips, _device(device)))


@app.command()
@_common
def status(common: Context) -> int:
    """What is there: corpora, stores, caches and runs; exit 3 if a store or cache is damaged."""
    from antigram.studies.status import status as run

    content = run(common.workspace)
    lines = []
    for kind, members in content.items():
        if isinstance(members, list):
            lines.append(f"{kind}:{'' if members else ' none'}")
            lines += [f"  {m['name']}: {m['summary']}" for m in members]
    common.answer(content, "\n".join(lines))
    return 3 if any("problem" in m for m in (*content["stores"], *content["caches"])) else 0


@app.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@_common
def clean(common: Context, dry_run: bool) -> None:
    """Remove what killed commands left, unfinished work included; nothing that is in use."""
    from antigram.studies.leftovers import clean as run

    done = run(common.workspace, dry_run=dry_run)
    common.answer(
        {"dry_run": dry_run, **done.to_json()},
        "\n".join(done.lines("would be removed" if dry_run else "removed")),
    )


@app.command()
@click.option("--report", type=click.Path(path_type=Path), default=Path("report.html"))
@click.option("--width", type=int, default=4, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@_common
def demo(common: Context, report: Path, width: int, epochs: int, seed: int) -> None:
    """The whole chain on speech synthesised here, on a CPU, in minutes; ends with a report."""
    from antigram.studies.demo import run_demo, table

    content = run_demo(
        [sys.executable, str(Path(__file__).resolve())],
        common.workspace.root,
        report,
        width=width,
        epochs=epochs,
        seed=seed,
        on_message=common.on_message,
    )
    common.answer(content, table(content))


def _plain(name: str) -> str:
    """A name that is one part of a path."""
    from antigram.pipeline.errors import InputError

    if not name or name.startswith((".", "-")) or "/" in name or "\\" in name:
        raise InputError(f"--name {name!r}: wanted a plain name, without slashes or a leading dot")
    if not name.isprintable():
        raise InputError(f"--name {name!r}: holds characters that do not show; wanted a plain name")
    return name.removesuffix(".zarr")


def _device(name: str) -> torch.device:
    """The device asked for; what cannot be had is an error, never replaced by another."""
    import torch

    from antigram.pipeline.errors import InputError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r}: wanted cpu, cuda, cuda:1 or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r}: wanted cpu, cuda, cuda:1 or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there is no such GPU; --device cpu works everywhere")
    return device


def _fail(message: str, code: int) -> NoReturn:
    line = safe(" ".join(str(message).split()))
    click.echo(f"antigram: {line}", err=True)
    if "--json" in sys.argv:
        click.echo(safe_json({"error": line, "exit_code": code}))
    sys.exit(code)


def main() -> None:
    """Run a command; turn what we foresee into one line and an exit code."""
    from antigram.pipeline.errors import DistributedError, InputError, StoredDataError

    try:
        code = app.main(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except StoredDataError as error:
        _fail(str(error), 3)
    except DistributedError as error:
        _fail(str(error), 1)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted; the same command goes on where it was (train: with --resume)", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(f"{error.format_message()} See `{where or 'antigram'} --help`.", 2)
    except OSError as error:
        if error.filename is None and error.errno not in _SYSTEM_LIMITS:
            raise
        where = error.filename or "the workspace"
        _fail(f"{where}: {error.strerror}. What is finished is kept; mend it and run again.", 2)
    except MemoryError as error:
        _fail(f"out of memory{f' ({error})' if str(error) else ''}. {_LESS_MEMORY}", 2)
    except ImportError as error:
        if "failed to map segment" not in str(error):  # of a library: the linker's words
            raise
        _fail(f"out of memory ({error}). {_LESS_MEMORY}", 2)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's allocator of host memory
            raise
        _fail(f"out of memory. {_LESS_MEMORY}", 2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
