"""Last stage of `prepare`: write labels and other small arrays, metadata and manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.noise import NoiseBank
from antigram.pipeline.corpus import Corpus
from antigram.pipeline.execution.executor import Executor
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.first_pass import Rendered
from antigram.pipeline.features.listing import Listing
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import write_chunks
from antigram.pipeline.features.rows import Row, values_of
from antigram.pipeline.features.second_pass import features_spec
from antigram.pipeline.features.store import FORMAT, VERSION, store_fingerprint
from antigram.pipeline.features.summary import lengths_of
from antigram.pipeline.storage.chunks import (
    STRING,
    ArraySpec,
    Written,
    encode,
    small_rows_per_chunk,
)
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays, create_group, write_manifest

__all__ = ["SmallArrays", "finish_store", "small_arrays", "sort_classes"]

_FILES_A_TASK = 64


def sort_classes(names: Iterable[str]) -> list[str]:
    """Return a label's classes sorted by number if all are numbers, else by name."""
    classes = list(names)
    numeric = all(name.isdecimal() for name in classes)
    return sorted(classes, key=lambda name: (int(name), name) if numeric else (0, name))


@dataclass(slots=True)
class SmallArrays:
    """All arrays of a store except ``features``, encoded as chunks.

    Attributes:
        rows: rows in a chunk.
        specs: layout of each array.
        chunks: array, index and bytes of each chunk.
        classes: label -> names of its classes.
    """

    rows: int
    specs: list[ArraySpec] = field(default_factory=list)
    chunks: list[tuple[ArraySpec, int, bytes]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        dtype: str,
        values: NDArray[Any] | Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an array of numbers or strings, with one value for each row."""
        spec = ArraySpec(name, (len(values),), dtype, self.rows, attributes or {})
        self.specs.append(spec)
        for index in range(spec.chunks):
            data = encode(spec, index, values[spec.span(index)]).tobytes()
            self.chunks.append((spec, index, data))

    def add_label(self, name: str, values: Sequence[str]) -> None:
        """Add a label: the index of each row's class, -1 for an empty value."""
        self.classes[name] = classes = sort_classes(set(values) - {""})
        index = {"": -1} | {value: i for i, value in enumerate(classes)}
        coded = np.array([index[value] for value in values], np.int32)
        self.add(f"labels/{name}", "int32", coded, {"classes": classes})


@dataclass(frozen=True, slots=True)
class _Sources(Sequence[str]):
    """Sources of rows, made when they are read: only those of one chunk are in memory."""

    rows: Sequence[Row]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [row.source(self.sample_rate) for row in self.rows[index]]
        return self.rows[index].source(self.sample_rate)


def small_arrays(
    corpus: Corpus,
    listing: Listing,
    rendered: Rendered,
    recipe: Recipe,
    split: Sequence[int],
    bank: NoiseBank | None,
) -> SmallArrays:
    """Return the arrays of labels, split, ids and sources, and of noise if any was mixed in."""
    small = SmallArrays(small_rows_per_chunk(len(rendered.rows)))
    for name in listing.label_names:
        small.add_label(name, [value or "" for value in values_of(rendered.rows, name)])
    if bank is not None and corpus.list_mixtures is None:
        noise = np.array([*bank.classes, ""], object)[rendered.results.columns["noise"]].tolist()
        small.add_label("noise", noise)
    if bank is not None:
        snr = rendered.results.columns["snr_db"]  # NaN where there is none
        small.add("snr_db", "float32", snr.astype(np.float32))
    small.add("split", "int8", np.array(split, np.int8))
    small.add("clip_id", STRING, [row.clip_id for row in rendered.rows])
    small.add("source", STRING, _Sources(rendered.rows, recipe.sample_rate))
    return small


def finish_store(
    pool: Executor,
    store: Path,
    corpus: Corpus,
    recipe: Recipe,
    listing: Listing,
    rendered: Rendered,
    scale: tuple[float, float],
    written_features: Sequence[Written],
    small: SmallArrays,
) -> str:
    """Write the small arrays, the metadata and the manifest; they make the group a store.

    Nothing is flushed to disk here: the file system is, before the store is published.

    Returns:
        The store's fingerprint.
    """
    features = features_spec(recipe, len(rendered.rows))
    arrays = {"features": list(written_features)}
    specs, chunks = [features, *small.specs], small.chunks
    tasks = [(store, chunks[i : i + _FILES_A_TASK]) for i in range(0, len(chunks), _FILES_A_TASK)]
    written = {
        (spec.name, index): checksums
        for (_, task_chunks), results in pool.run(write_chunks, tasks)
        for (spec, index, _), checksums in zip(task_chunks, results, strict=True)
    }
    for spec in specs[1:]:
        arrays[spec.name] = [written[spec.name, index] for index in range(spec.chunks)]

    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "complete": True,
        "recipe": recipe.to_json(),
        "mean": scale[0],
        "std": scale[1],
        "corpus": corpus.name,
        "main_label": listing.main,
        "classes": small.classes,
        "rejected": [asdict(reject) for reject in rendered.rejected],
        "skipped": listing.skipped,
        "silent": int(rendered.results.columns["silent"].sum()),
        "lengths": lengths_of(rendered.rows, recipe),
        "listing": listing.identity,
        "versions": versions(("antigram", "numpy", "scipy", "soundfile", "soxr", "zarr")),
    }
    group = Folder(store)
    create_group(group, {}, flush=False)
    if any("/" in spec.name for spec in specs):
        create_group(group.below("labels"), {}, flush=False)
    create_arrays(group, specs, flush=False)
    create_group(group, {"antigram": root}, flush=False)
    # The fingerprint needs the manifest's digests, and the manifest the root's checksum.
    fingerprint = store_fingerprint(root, write_manifest(group, arrays, flush=False))
    root["fingerprint"] = fingerprint
    create_group(group, {"antigram": root}, flush=False)
    write_manifest(group, arrays, flush=False)
    return fingerprint
