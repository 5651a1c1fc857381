"""Layers with correct checksums whose arrays do not agree with their key."""

import json
import re
import shutil

import numpy as np
import pytest

from antigram.cache.grams import GramCache
from antigram.cache.layer import layer_fingerprint
from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.chunks import ArraySpec, encode, write_chunk
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
    write_manifest,
)
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.verification import verify_group
from antigram.studies.verify import verify_cache


@pytest.fixture
def rewrite(build):
    """Rewrite arrays of layer 5, with their checksums, manifest and fingerprint."""

    def make(**arrays):
        path = build(layers=(5,)).path
        folder = path / "layer05"
        attributes = json.loads((folder / "zarr.json").read_text())["attributes"]["antigram"]
        manifest, written = read_manifest(Folder(folder)), {}
        for name in manifest.arrays:
            values = MappedArray(Folder(folder), name, manifest.crcs(name), "").read()
            values = arrays.get(name, lambda v: v)(values)
            spec = ArraySpec(name, values.shape, str(values.dtype), 4)
            shutil.rmtree(folder / name)
            create_arrays(Folder(folder), [spec])
            written[name] = [
                write_chunk(
                    Folder(folder), spec, i, encode(spec, i, values[spec.span(i)]), flush=False
                )
                for i in range(spec.chunks)
            ]
        content = write_manifest(Folder(folder), written).digests()
        attributes["fingerprint"] = layer_fingerprint(attributes, content)
        create_group(Folder(folder), {"antigram": attributes})
        write_manifest(Folder(folder), written)
        root = json.loads((path / "zarr.json").read_text())["attributes"]["antigram"]
        root["layers"] = {"5": attributes["fingerprint"]}
        create_group(Folder(path), {"antigram": root})
        shutil.rmtree(path / "clip_id")  # caches of earlier versions have no ids
        write_manifest(Folder(path), {})
        return path

    return make


EVERY = ("gram", "norm", "row_norm")
WRONG = {
    "rows of other clips": (
        dict.fromkeys(EVERY, lambda v: v[:-1]), r"14 rows, the store has 15 clips"),
    "norms of fewer clips": (
        {"norm": lambda v: v[:-1]}, r"norm: is float32 \(14,\), wanted float32 \(15\)"),
    "norms of another dtype": (
        {"row_norm": lambda v: v.astype(np.float16)}, r"row_norm: is float16 \(15,\), wanted"),
    "rows of another dtype": (
        {"gram": lambda v: v.astype(np.float32)}, r"gram: is float32 .*, wanted float16"),
    "rows of another length": (
        {"gram": lambda v: v[:, :-1]}, r"gram: is float16 \(15, 35\), wanted float16 \(15, 36\)"),
    "rows of another rank": (
        {"gram": lambda v: v[:, None]}, r"gram: is float16 \(15, 1, 36\), wanted float16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_layer_that_does_not_hold_what_its_key_says_is_refused(name, rewrite, store):
    arrays, says = WRONG[name]
    path = rewrite(**arrays)
    assert not list(verify_group(Folder(path / "layer05")))  # every checksum is right
    with pytest.raises(DamagedError, match=says):
        GramCache(path, store)
    problems = [problem.problem for problem in verify_cache(path, [store.path])]
    assert [re.search(says, problem) is not None for problem in problems] == [True]


def test_a_layer_that_is_rewritten_as_it_was_is_whole(rewrite, store):
    path = rewrite()
    assert not list(verify_cache(path, [store.path]))
    assert GramCache(path, store).read(np.arange(15))[5].data.shape == (15, 36)
