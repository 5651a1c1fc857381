"""Resolve train options into a validated job: store, sources of Grams, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from antigram.cache.grams import GramCache
from antigram.cache.layer import choose_cache, layers_of, open_root
from antigram.cache.plan import plan_layers
from antigram.model.choices import Layer, layer_order, similarity_of
from antigram.model.loss.at_loss import check_combination, flat_layers_note
from antigram.model.loss.renamed import Renamed
from antigram.model.loss.shapes import check_grids, check_shapes
from antigram.model.loss.sources import GramSource, LiveGrams, Sources, TapSpec
from antigram.model.nets.arch import OWN, Arch
from antigram.model.nets.networks import check_network, main_layers, map_shape
from antigram.model.nets.own import named_arch, own_arch, takes
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.config import TrainConfig
from antigram.model.training.guards import load_teacher, spectrum_note
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.options import Options, check_options

__all__ = ["Job", "layer_numbers", "layer_pairs", "resolve", "store_for"]


@dataclass(frozen=True, slots=True)
class Job:
    """A training with validated options: store, sources of rows, settings and first teacher."""

    store: FeatureStore
    sources: Sources | None
    config: TrainConfig
    teacher: Teacher | None  # teacher of the first named checkpoint


def resolve(
    workspace: Workspace,
    options: Options,
    settings: Mapping[str, Any],
    device: torch.device,
    on_message: OnMessage,
) -> Job:
    """Open the store and the teachers of a training, and validate them against each other.

    Args:
        workspace: names are looked up in it.
        options: data and teachers of the training.
        settings: further fields of `TrainConfig`.
        device: device of live teachers and of cached rows.
        on_message: called with a line of text for each default that was chosen.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: a store or cache is damaged or stale.
    """
    mode = options.mode
    check_options(options, settings)
    if OWN in (options.arch or ""):
        own_arch(str(options.arch))  # so that a teacher with this network can be opened
    teachers = {path.stem: load_teacher(path, on_message) for path in options.ckpts}
    if len(teachers) < len(options.ckpts):
        raise InputError("`ckpts`: two files have the same name; rename one")
    first = next(iter(teachers.values()), None)
    store = FeatureStore(store_for(workspace, options.data, options.caches, on_message))
    for path, teacher in zip(options.ckpts, teachers.values(), strict=True):
        if note := spectrum_note(path, teacher, store):
            on_message(note)
    task = options.task or store.main_label
    store.labels(task)  # raises if there is no such label
    members: dict[str, GramSource] = {}
    pairs: dict[str, dict[Layer, str]] = {}  # teacher -> its layer -> that of the student
    tasks = {name: teacher.task for name, teacher in teachers.items()}
    if mode == "cached":
        named = _named_caches(workspace, store, options, on_message)
        options = _by_cache_name(options, named)
        tasks = {name: _made_from(path).get("task", "") for name, path in named.items()}
        pairs = {
            name: _cached_pairs(path, _layers_for(options, name, named))
            for name, path in named.items()
        }
        members = _caches(named, store, options, pairs, teachers, device)
    elif mode == "online":
        for name, teacher in teachers.items():
            pairs[name] = layer_pairs(
                _layers_for(options, name, teachers), teacher.arch, store.shape
            )
            spec = TapSpec(
                arch=teacher.arch,
                layers=tuple(sorted(pairs[name], key=layer_order)),
                tap=options.tap or "relu",
                aggregation=options.aggregation or "gram",
            )
            members[name] = LiveGrams(teacher.net().to(device), spec)
    archs = [source.spec.arch for source in members.values()]
    archs = [arch for arch in archs if not arch.external] or ([first.arch] if first else [])
    origin = archs[0] if archs else None
    arch = named_arch(options.arch, options.width, origin)
    check_network(arch, store.shape)
    settings = _with_dropout(settings, arch)
    layers: tuple[Layer, ...] = ()
    if mode == "frozen":
        layers = layer_numbers(options.layers, arch, store.shape)
    names = {
        name: {layer: arch.check_layers([own])[0] for layer, own in pairs[name].items()}
        for name in members
    }
    check_grids({name: source.spec for name, source in members.items()}, store.shape, names)
    members = {
        name: _for_student(source, names[name], arch, store.shape)
        for name, source in members.items()
    }
    sources = Sources(members) if members else None
    tap, aggregation = options.tap or "relu", options.aggregation or "gram"
    if sources is not None:
        layers, tap, aggregation = sources.layers, sources.spec.tap, sources.spec.aggregation
    if settings.get("loss") == "released" and len(members) > 1:
        raise InputError("`loss=released` compares with one teacher: give one of `ckpts`")
    config = TrainConfig(
        mode=mode,
        task=task,
        arch=arch,
        layers=layers,
        tap=tap,
        aggregation=aggregation,
        views=_views(options, sources, store, settings.get("seed", 0)),
        **_betas(options.betas, members),
        **settings,
    )
    similarity = similarity_of(aggregation, config.similarity)
    check_combination(aggregation, tap, similarity, layers)
    if sources is not None and (note := flat_layers_note(aggregation, similarity, layers)):
        on_message(note)
    for name in members:
        if tasks.get(name) == task and dict(config.betas).get(name, config.beta) > 0:
            on_message(
                f"the teacher {name} was trained for {task}, which the student learns too: "
                "anti-transfer then keeps the student away from what it needs. Unless this is the "
                "control same-task, choose another `task`, `data` or teacher."
            )
    return Job(store, sources, config, first)


def store_for(
    workspace: Workspace, data: str | None, caches: Sequence[str], on_message: OnMessage
) -> Path:
    """Return the path of the named store, else of the store of the first named cache.

    If neither is named, return the only store of the workspace, or the store prepared last.
    """
    if data is None and caches:
        root = open_root(workspace.named(workspace.grams, caches[0], "Gram cache"))
        for path in reversed(workspace.members(workspace.features)):
            try:
                if FeatureStore(path).fingerprint == root["features"]:
                    on_message(f"store: {path.stem} (the cache's)")
                    return path
            except (InputError, StoredDataError):
                if path.stem == root.get("made_from", {}).get("store"):
                    raise  # this run needs that store; damage of any other store does not matter
    return workspace.store(data, on_message)


def _named_caches(
    workspace: Workspace, store: FeatureStore, options: Options, on_message: OnMessage
) -> dict[str, Path]:
    """Return the caches of a training by name: the named caches, or the store's latest cache."""
    if options.caches:
        paths = [workspace.named(workspace.grams, name, "Gram cache") for name in options.caches]
    else:
        paths = [choose_cache(workspace.members(workspace.grams), store)]
        on_message(f"cache: {paths[0].stem}")
    named = {path.stem: path for path in paths}
    if len(named) < len(paths):
        raise InputError("`caches`: two caches have the same name; rename one")
    return named


def _made_from(path: Path) -> Mapping[str, Any]:
    made_from: Mapping[str, Any] = open_root(path).get("made_from", {})
    return made_from


def _by_cache_name(options: Options, named: Mapping[str, Path]) -> Options:
    """Replace a checkpoint's name, as in ``emo:5``, by the name of its cache, if there is one."""
    ckpts = [str(_made_from(path).get("checkpoint")) for path in named.values()]
    caches = {ckpt: name for ckpt, name in zip(ckpts, named, strict=True) if ckpts.count(ckpt) == 1}

    def renamed(texts: Sequence[str]) -> tuple[str, ...]:
        parts = [text.rpartition(":") for text in texts]
        return tuple(
            source + colon + value
            if source in named
            else caches.get(source, source) + colon + value
            for source, colon, value in parts
        )

    return replace(options, layers=renamed(options.layers), betas=renamed(options.betas))


def _layers_for(options: Options, name: str, known: Mapping[str, object]) -> list[str]:
    """Return the layers asked for of one source; empty if none are for any source."""
    texts = _of_source(options.layers, name, known, "layers")
    if options.layers and not texts:
        raise InputError(f"`layers`: no layer is given for {name}; add `layers={name}:N`")
    return texts


def _cached_pairs(path: Path, texts: Sequence[str]) -> dict[Layer, str]:
    """Return the cached layers that are asked for, or all, each with the student's layer."""
    cached = {str(layer): layer for layer in layers_of(path)}
    if not texts or "all" in texts:
        return {layer: text for text, layer in cached.items()}
    return {cached.get(of_teacher, of_teacher): own for own, of_teacher in _split(texts)}


def _split(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the student's and the teacher's layer of texts such as ``5`` or ``layer3=10``.

    Raises:
        InputError: a layer of the teacher is given twice, with two of the student.
    """
    pairs = [(own, other or own) for own, _, other in (text.partition("=") for text in texts)]
    known: dict[str, str] = {}
    for own, other in pairs:
        if known.setdefault(other, own) != own:
            raise InputError(
                f"`layers` {own}={other}: the teacher's layer {other} is compared with "
                f"{known[other]} already; compare each with one layer of the student"
            )
    return pairs


def _for_student(
    source: GramSource, names: Mapping[Layer, Layer], arch: Arch, shape: tuple[int, int]
) -> GramSource:
    """Return a source whose layers have the student's names, after checking the maps' shapes."""
    check_shapes(arch, source.spec, shape, names)
    same = all(layer == own for layer, own in names.items())
    return source if same else Renamed(source, names)


def _with_dropout(settings: Mapping[str, Any], arch: Arch) -> Mapping[str, Any]:
    """Return the settings without dropout for a user's own network that does not take it."""
    if takes(arch, "dropout"):
        return settings
    if "dropout" in settings:
        raise InputError(f"`dropout`: {arch.name} takes none; leave it out")
    return {**settings, "dropout": 0.0}


def _caches(
    named: Mapping[str, Path],
    store: FeatureStore,
    options: Options,
    pairs: Mapping[str, Mapping[Layer, str]],
    teachers: Mapping[str, Teacher],
    device: torch.device,
) -> dict[str, GramSource]:
    """Open each cache at the requested layers."""
    wanted = {
        key: value
        for key, value in (("tap", options.tap), ("aggregation", options.aggregation))
        if value is not None
    }
    if teachers and len(teachers) != len(named):
        raise InputError(
            f"{len(teachers)} `ckpts` for {len(named)} `caches`: give none, or one for each"
        )
    sources: dict[str, GramSource] = {}
    for number, (name, path) in enumerate(named.items()):
        grams = GramCache(path, store, list(pairs[name]) or None, wanted, device=device)
        if teachers:
            _check_teacher(path, store, grams, list(teachers.values())[number])
        sources[name] = grams
    return sources


def _check_teacher(path: Path, store: FeatureStore, grams: GramCache, teacher: Teacher) -> None:
    """Raise if a cache was not made with this teacher."""
    spec = TapSpec(
        arch=teacher.arch,
        layers=grams.spec.layers,
        tap=grams.spec.tap,
        aggregation=grams.spec.aggregation,
    )
    for number, plan in plan_layers(store, teacher, spec).items():
        key = grams.layers[number].key
        key.require(str(path), {"arch": plan.key.arch, "extractor": plan.key.extractor})


def _views(
    options: Options, sources: Sources | None, store: FeatureStore, seed: int
) -> Views | None:
    """Return the augmentation of training segments, from the caches or else from the options."""
    if options.mode == "cached" and sources is not None:
        if options.views is not None:
            raise InputError("`views`: the cache decides; give them to `antigram cache-grams`")
        if options.augment and sources.views is None:
            raise InputError(
                f"`augment`: the cache {sources.names[0]} holds Grams of segments without "
                "augmentation. Make another cache with `antigram cache-grams` and `views=K`, or "
                "use `mode=online`."
            )
        return sources.views
    if options.views is not None and not options.augment:
        raise InputError("`views`: goes with `augment`")
    if not options.augment:
        return None
    return Views.for_shape(store.shape, count=options.views or 0, seed=seed)


def _of_source(
    texts: Sequence[str], name: str, known: Mapping[str, object], argument: str
) -> list[str]:
    """Return the values for one source: values with its name as prefix, and without a prefix."""
    values = []
    for text in texts:
        source, colon, value = text.rpartition(":")
        if colon and source not in known:
            raise InputError(
                f"`{argument}` {text!r}: no source is called {source!r}; there is "
                f"{', '.join(known)}"
            )
        if not colon or source == name:
            values.append(value)
    return values


def _betas(texts: Sequence[str], members: Mapping[str, GramSource]) -> dict[str, Any]:
    """Return the fields ``beta`` and ``betas`` of the settings."""
    plain = [text for text in texts if ":" not in text]
    if len(plain) > 1:
        raise InputError(f"`betas` {' '.join(plain)}: one for all, or NAME:BETA for a source")
    fields: dict[str, Any] = {"beta": _real(plain[0])} if plain else {}
    betas = []
    for name in members:
        values = [t for t in _of_source(texts, name, members, "betas") if t not in plain]
        if values:
            betas.append((name, _real(values[-1])))
    if not members:
        _of_source(texts, "", members, "betas")
    return {**fields, "betas": tuple(betas)} if betas else fields


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"`betas` {text!r}: wanted a number") from None


def layer_pairs(texts: Sequence[str], teacher: Arch, shape: tuple[int, int]) -> dict[Layer, str]:
    """Return the teacher's layers, each with the student's layer that is compared with it.

    Args:
        texts: layers, such as ``5``, ``layer3.1``, ``layer3=10`` (STUDENT=TEACHER) or ``all``.
        teacher: architecture of the teacher.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the teacher has no such layer.
    """
    if "all" in texts:
        return {layer: str(layer) for layer in main_layers(teacher, shape)}
    return {layer_numbers([other], teacher, shape)[0]: own for own, other in _split(texts)}


def layer_numbers(
    layers: Sequence[str | int], arch: Arch, shape: tuple[int, int]
) -> tuple[Layer, ...]:
    """Return layers, sorted; ``all`` stands for `main_layers`.

    Args:
        layers: numbers of a VGG's convolution layers, or names of modules.
        arch: architecture of the network.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the network has no such layer.
    """
    if "all" in layers:
        return main_layers(arch, shape)
    checked = arch.check_layers(layers)
    for layer in checked:
        if isinstance(layer, str):
            map_shape(arch, layer, "relu", shape)  # raises if there is none
    return checked
