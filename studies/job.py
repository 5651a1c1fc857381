"""From what a user typed after ``train`` to store, sources of Grams and settings, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from antigram.cache.grams import GramCache
from antigram.cache.layer import choose_cache, open_root
from antigram.cache.plan import plan_layers
from antigram.model.loss.at_loss import check_combination, flat_layers_note
from antigram.model.loss.sources import GramSource, LiveGrams, Sources, TapSpec, check_shapes
from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.config import TrainConfig
from antigram.model.training.guards import load_teacher
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.options import Options, check_options

__all__ = ["Job", "layer_numbers", "resolve", "store_for"]


@dataclass(frozen=True, slots=True)
class Job:
    """A training that can begin."""

    store: FeatureStore
    sources: Sources | None
    config: TrainConfig
    teacher: Teacher | None  # the first net named


def resolve(
    workspace: Workspace,
    asked: Options,
    rest: Mapping[str, Any],
    device: torch.device,
    on_message: OnMessage,
) -> Job:
    """Find the store and the teachers' side, and check all against each other.

    Args:
        workspace: where names are looked up.
        asked: what decides the sources.
        rest: further fields of `TrainConfig`.
        device: where live nets go.
        on_message: told which defaults were taken.

    Raises:
        InputError: something is missing, unknown or does not fit.
        StoredDataError: a store or cache is damaged or stale.
    """
    mode = asked.mode
    check_options(asked, rest)
    nets = {path.stem: load_teacher(path, on_message) for path in asked.ckpts}
    if len(nets) < len(asked.ckpts):
        raise InputError("`ckpts`: two files have the same name; rename one")
    first = next(iter(nets.values()), None)
    store = FeatureStore(store_for(workspace, asked.data, asked.caches, on_message))
    task = asked.task or store.main_label
    store.labels(task)  # says at once if there is no such label
    members: dict[str, GramSource] = {}
    layers: tuple[int, ...] = ()
    if mode == "cached":
        named = _named_caches(workspace, store, asked, on_message)
        asked = _by_cache_name(asked, named)
        members = _caches(named, store, asked, nets, device)
    elif mode == "online":
        for name, net in nets.items():
            spec = TapSpec(
                arch=net.arch,
                layers=layer_numbers(_of_source(asked.layers, name, nets, "layers"), net.arch),
                tap=asked.tap or "relu",
                aggregation=asked.aggregation or "gram",
            )
            if not spec.layers:
                raise InputError(f"`layers`: none is asked for of {name}; add `layers={name}:N`")
            members[name] = LiveGrams(net.net().to(device), spec)
    elif asked.layers and first is not None:
        layers = layer_numbers(asked.layers, first.arch)
    sources = Sources(members) if members else None
    origin = sources.spec.arch if sources else first.arch if first else Arch()
    arch = Arch(asked.arch or origin.name, origin.width if asked.width is None else asked.width)
    tap, aggregation = asked.tap or "relu", asked.aggregation or "gram"
    if sources is not None:
        layers, tap, aggregation = sources.layers, sources.spec.tap, sources.spec.aggregation
        for source in members.values():
            check_shapes(arch, source.spec, store.shape)
    if rest.get("loss") == "released" and len(members) > 1:
        raise InputError("`loss=released` compares with one teacher: give one of `ckpts`")
    config = TrainConfig(
        mode=mode,
        task=task,
        arch=arch,
        layers=layers,
        tap=tap,
        aggregation=aggregation,
        views=_views(asked, sources, store, rest.get("seed", 0)),
        **_betas(asked.betas, members),
        **rest,
    )
    check_combination(aggregation, tap, config.similarity, layers)
    if sources is not None and (note := flat_layers_note(aggregation, config.similarity, layers)):
        on_message(note)
    return Job(store, sources, config, first)


def store_for(
    workspace: Workspace, data: str | None, caches: Sequence[str], on_message: OnMessage
) -> Path:
    """The store named; else that of the cache named; else the only one or the one made last."""
    if data is None and caches:
        root = open_root(workspace.named(workspace.grams, caches[0], "Gram cache"))
        for path in reversed(workspace.members(workspace.features)):
            try:
                if FeatureStore(path).fingerprint == root["features"]:
                    on_message(f"store: {path.stem} (the cache's)")
                    return path
            except (InputError, StoredDataError):
                if path.stem == root.get("made_from", {}).get("store"):
                    raise  # else another store's damage, not this run's
    return workspace.store(data, on_message)


def _named_caches(
    workspace: Workspace, store: FeatureStore, asked: Options, on_message: OnMessage
) -> dict[str, Path]:
    """The caches of a training: those named, or the latest of the store."""
    if asked.caches:
        paths = [workspace.named(workspace.grams, name, "Gram cache") for name in asked.caches]
    else:
        paths = [choose_cache(workspace.members(workspace.grams), store)]
        on_message(f"cache: {paths[0].stem}")
    named = {path.stem: path for path in paths}
    if len(named) < len(paths):
        raise InputError("`caches`: two caches have the same name; rename one")
    return named


def _by_cache_name(asked: Options, named: Mapping[str, Path]) -> Options:
    """Take the name of a net, ``emo:5``, for that of the one cache that was made with it."""
    nets = [str(open_root(path).get("made_from", {}).get("checkpoint")) for path in named.values()]
    caches = {net: name for net, name in zip(nets, named, strict=True) if nets.count(net) == 1}

    def renamed(texts: Sequence[str]) -> tuple[str, ...]:
        parts = [text.rpartition(":") for text in texts]
        return tuple(
            source + colon + value
            if source in named
            else caches.get(source, source) + colon + value
            for source, colon, value in parts
        )

    return replace(asked, layers=renamed(asked.layers), betas=renamed(asked.betas))


def _caches(
    named: Mapping[str, Path],
    store: FeatureStore,
    asked: Options,
    nets: Mapping[str, Teacher],
    device: torch.device,
) -> dict[str, GramSource]:
    """The Grams of each cache, at the layers that are asked for."""
    wanted = {
        key: value
        for key, value in (("tap", asked.tap), ("aggregation", asked.aggregation))
        if value is not None
    }
    if nets and len(nets) != len(named):
        raise InputError(
            f"{len(nets)} `ckpts` for {len(named)} `caches`: give none, or one for each"
        )
    found: dict[str, GramSource] = {}
    for number, (name, path) in enumerate(named.items()):
        texts = _of_source(asked.layers, name, named, "layers")
        if asked.layers and not texts:
            raise InputError(f"`layers`: none is asked for of {name}; add `layers={name}:N`")
        layers = None if not texts or "all" in texts else [_number(text) for text in texts]
        grams = GramCache(path, store, layers, wanted, device=device)
        if nets:
            _check_net(path, store, grams, list(nets.values())[number])
        found[name] = grams
    return found


def _check_net(path: Path, store: FeatureStore, grams: GramCache, net: Teacher) -> None:
    """A net named beside a cache must be the one that the cache was made with."""
    spec = TapSpec(
        arch=net.arch,
        layers=grams.spec.layers,
        tap=grams.spec.tap,
        aggregation=grams.spec.aggregation,
    )
    for number, plan in plan_layers(store, net, spec).items():
        key = grams.layers[number].key
        key.require(str(path), {"arch": plan.key.arch, "extractor": plan.key.extractor})


def _views(asked: Options, sources: Sources | None, store: FeatureStore, seed: int) -> Views | None:
    """How training clips are augmented: as the caches' were, or as it was asked for."""
    if asked.mode == "cached" and sources is not None:
        if asked.views is not None:
            raise InputError("`views`: the cache decides; give it to `antigram cache-grams`")
        if asked.augment and sources.views is None:
            raise InputError(
                f"`augment`: the cache {sources.names[0]} holds the Grams of the clips as they "
                "are, which are not those of augmented ones. Make one with `antigram cache-grams` "
                "and `views=K`, or use `mode=online`."
            )
        return sources.views
    if asked.views is not None and not asked.augment:
        raise InputError("`views`: goes with `augment`")
    if not asked.augment:
        return None
    return Views.for_shape(store.shape, count=asked.views or 0, seed=seed)


def _of_source(
    texts: Sequence[str], name: str, known: Mapping[str, object], argument: str
) -> list[str]:
    """Values for one source: those with its name in front, and those with none."""
    found = []
    for text in texts:
        source, colon, value = text.rpartition(":")
        if colon and source not in known:
            raise InputError(
                f"`{argument}` {text!r}: no source is called {source!r}; there is "
                f"{', '.join(known)}"
            )
        if not colon or source == name:
            found.append(value)
    return found


def _betas(texts: Sequence[str], members: Mapping[str, GramSource]) -> dict[str, Any]:
    """Fields ``beta`` and ``betas`` of the settings."""
    plain = [text for text in texts if ":" not in text]
    if len(plain) > 1:
        raise InputError(f"`betas` {' '.join(plain)}: one for all, or NAME:BETA for a source")
    found: dict[str, Any] = {"beta": _real(plain[0])} if plain else {}
    own = []
    for name in members:
        values = [t for t in _of_source(texts, name, members, "betas") if t not in plain]
        if values:
            own.append((name, _real(values[-1])))
    if not members:
        _of_source(texts, "", members, "betas")
    return {**found, "betas": tuple(own)} if own else found


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"`betas` {text!r}: wanted a number") from None


def _number(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,3}", text) is None:
        raise InputError(f"`layers` {text!r}: wanted the number of a convolution layer, or all")
    return int(text)


def layer_numbers(layers: Sequence[str | int], arch: Arch) -> tuple[int, ...]:
    """Return the numbers of convolution layers, sorted; ``all`` stands for every one.

    Raises:
        InputError: one is not a convolution of this network.
    """
    if "all" in layers:
        return tuple(range(1, arch.layers + 1))
    return arch.check_layers([_number(str(layer)) for layer in layers])
