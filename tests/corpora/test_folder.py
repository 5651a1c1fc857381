"""The adapter for a user's own recordings, from listing to store."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.corpus import Clip, CorpusError, Skipped
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.verification import verify_group
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav
from tests.support.listings import entries_of

tree = corpus_trees.folder

METADATA = """\ufefffile_name,split,mood,singer
a.wav,train,calm,ann
sub/b.wav,validation,wild,
./c.wav,test,calm,bob
d.wav, Train ,calm,bob
"""


def listed(home: Path) -> dict[str, Clip]:
    return {c.id: c for c in entries_of(FOLDER, home) if isinstance(c, Clip)}


def prepared(home: Path, target: Path, recordings=None, **changes) -> Prepared:
    recipe = Recipe(corpus="folder", longer="segment", seconds=0.1, **changes)
    return prepare(FOLDER, home, recipe, target, noise=recordings)


@pytest.fixture
def table(tmp_path) -> Path:
    """A folder with a metadata.csv and its four recordings."""
    home = tmp_path / "mine"
    for n, name in enumerate(("a.wav", "sub/b.wav", "c.wav", "d.wav")):
        wav(home / name, sound(n, 1_600))
    (home / "metadata.csv").write_text(METADATA, "utf-8")
    return home


def test_a_directory_is_a_class_however_deep_its_files_lie(tmp_path):
    clips = listed(tree(tmp_path))
    assert len(clips) == 10
    assert {c.labels["label"] for c in clips.values()} == {"cat", "dog", "owl"}
    assert clips["cat/deeper/cat_3.flac"].labels == {"label": "cat"}
    assert {c.split for c in clips.values()} == {None}


def test_hidden_files_and_texts_are_counted_as_skipped(tmp_path):
    found = entries_of(FOLDER, tree(tmp_path))
    assert sum(s.count for s in found if isinstance(s, Skipped)) == 2


@pytest.mark.parametrize(
    "names",
    [("train", "validation", "test"), ("Training", "valid", "Testing"), ("train", "dev", "test")],
)
def test_directories_called_as_splits_are_the_official_split(names, tmp_path):
    for name in names:
        tree(tmp_path / name)
    clips = listed(tmp_path)
    assert len(clips) == 30
    splits = dict(zip(names, ("train", "validation", "test"), strict=True))
    assert all(c.split == splits[c.path.split("/")[0]] for c in clips.values())
    assert {c.labels["label"] for c in clips.values()} == {"cat", "dog", "owl"}


def test_a_class_called_test_among_others_is_a_class(tmp_path):
    for name in ("test", "other"):
        wav(tmp_path / name / "a.wav", sound(1))
    assert {c.labels["label"] for c in listed(tmp_path).values()} == {"test", "other"}


def test_metadata_gives_labels_and_split(table):
    clips = listed(table)
    assert {i: c.split for i, c in clips.items()} == {
        "a.wav": "train", "sub/b.wav": "validation", "c.wav": "test", "d.wav": "train",
    }  # fmt: skip
    assert clips["a.wav"].labels == {"mood": "calm", "singer": "ann"}
    assert clips["d.wav"].labels == {"mood": "calm", "singer": "bob"}
    assert not clips["sub/b.wav"].labels.get("singer")  # an empty cell: not known


def test_the_first_label_column_is_the_main_one_and_an_empty_cell_is_no_class(table, tmp_path):
    store = prepared(table, tmp_path / "x.zarr", split="official").store
    assert store.main_label == "mood"
    assert store.classes == {"mood": ["calm", "wild"], "singer": ["ann", "bob"]}
    assert dict(zip(store.clip_ids, store.labels("singer").tolist(), strict=True)) == {
        "a.wav#00000": 0, "c.wav#00000": 1, "d.wav#00000": 1, "sub/b.wav#00000": -1,
    }  # fmt: skip
    assert store.split.tolist() == [0, 2, 0, 1]


def test_an_official_split_that_names_not_every_clip_is_refused(table, tmp_path):
    (table / "metadata.csv").write_text("file_name,split,mood\na.wav,train,x\nc.wav,,x\n")
    with pytest.raises(InputError, match=r"not known for 1 of 2 segments, c.wav#00000 among them"):
        prepared(table, tmp_path / "x.zarr", split="official")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,mood\na.wav,x\n", "wanted file_name, or file .*and at least one label column"),
        ("file_name\na.wav\n", "wanted file_name, or file .*and at least one label column"),
        ("", r"metadata.csv:1:1: the table is empty"),
        ("file_name,mood\n/etc/passwd,x\n", r"metadata.csv:2:1: file_name is '/etc/passwd'"),
        ("file_name,mood\na.wav,x\n../a.wav,x\n", r"metadata.csv:3:1: file_name is '../a.wav'"),
        ("file_name,mood\nsub/../../a.wav,x\n", "wanted a path below"),
        ("file_name,mood\n,x\n", "file_name is ''"),
        ("file_name,split,mood\na.wav,holdout,x\n", "split is 'holdout'; wanted train, val"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(text, says, table):
    (table / "metadata.csv").write_text(text)
    with pytest.raises(CorpusError, match=says):
        listed(table)


def test_a_table_that_is_not_utf8_is_refused(table):
    (table / "metadata.csv").write_bytes(b"file_name,mood\na.wav,m\xfcde\n")
    with pytest.raises(CorpusError, match=r"metadata.csv:2:8: byte 0xfc is not UTF-8"):
        listed(table)


def test_a_file_named_twice_is_refused(table, tmp_path):
    (table / "metadata.csv").write_text("file_name,mood\na.wav,x\n./a.wav,y\n")
    with pytest.raises(CorpusError, match=r"metadata.csv:3:1: names a.wav, as does line 2"):
        prepared(table, tmp_path / "x.zarr")


def test_a_file_that_is_not_there_is_a_reject(table, tmp_path):
    (table / "metadata.csv").write_text("file_name,mood\na.wav,x\nnone.wav,y\n")
    with pytest.raises(InputError, match=r"none.wav: .*metadata.csv:3:1: no such file"):
        prepared(table, tmp_path / "x.zarr")


@pytest.mark.parametrize(
    "column", ["age/sex", "../outside", "/abs", "..", "", "a b", "zarr.json", "c"]
)
def test_any_label_column_makes_a_whole_store_or_is_refused_by_name(column, table, tmp_path):
    (table / "metadata.csv").write_text(
        f"file_name,mood,{column}\na.wav,x,1\nsub/b.wav,y,2\nc.wav,x,2\n"
    )
    target = tmp_path / "features" / "x.zarr"
    try:
        store = prepared(table, target).store
    except InputError as error:
        assert repr(column) in str(error) or "has no name" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert store.classes[column] == ["1", "2"]
        assert list(verify_group(Folder(target))) == []


def test_a_label_column_called_noise_does_not_clash_with_the_noise(table, tmp_path):
    (table / "metadata.csv").write_text("file_name,mood,noise\na.wav,x,car\nc.wav,y,bus\n")
    found = noise_files([corpus_trees.noise(tmp_path / "ms-snsd")])[1]
    identity = NoiseBank.digest_of(found)
    with pytest.raises(InputError, match="noise"):
        prepared(table, tmp_path / "x.zarr", found, noise="high", noise_files=identity)


def test_segments_of_one_file_are_never_parted(tmp_path):
    for n in range(12):
        wav(tmp_path / "mine" / "ab"[n % 2] / f"{n}.wav", sound(n, 1_600 * (1 + n % 4)))
    store = prepared(tmp_path / "mine", tmp_path / "x.zarr").store
    files = [source.rpartition("#")[0] for source in store.sources]
    assert len(files) == 30
    parts = {(f, s) for f, s in zip(files, store.split.tolist(), strict=True)}
    assert len(parts) == 12
    assert store.sources[2] == "a/10.wav#0.1"
