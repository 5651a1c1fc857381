"""The summary that `prepare` prints: classes, groups, lengths, noise and warnings."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.summary import summarise
from tests.support import corpus_trees
from tests.support.stores import prepare_gsc


def counted(store: FeatureStore, label: str) -> dict[str, dict[str, int]]:
    """Count the segments of each class in each split, one by one."""
    names = store.classes[label]
    cells = Counter(
        (names[value], SPLITS[part])
        for value, part in zip(store.labels(label), store.split, strict=True)
        if value >= 0
    )
    return {name: {split: cells[name, split] for split in SPLITS} for name in names}


def test_prepare_ends_with_a_table_of_classes_groups_lengths_and_noise(
    shell,
    gsc_home,
    noise_home,
):
    wanted = ("prepare", "gsc", "--source", gsc_home, "--noise", "high", "--noise-source")
    code, out, err = shell(*wanted, noise_home, "--name", "x")
    assert code == 0
    store = FeatureStore(Path("workspace/features/x.zarr"))
    want = counted(store, "word")
    for name, counts in want.items():
        assert [name, *map(str, counts.values())] in [line.split() for line in err.splitlines()]
    assert "in more than one split)" in err
    assert (
        "recordings: 0.697 s (shortest), 1 s (median), 1.25 s (longest); 3 were cut, "
        "3 segments are padded with zeros"
    ) in err
    assert "1 segments without noise" in err
    assert "segments by word" not in out

    found = shell.json(*wanted, noise_home, "--name", "x")["summary"]  # the store is left alone
    assert (found["label"], found["classes"]) == ("word", want)
    speakers = counted(store, "speaker").values()
    [groups] = found["groups"]
    assert groups == {
        "of": "speaker",
        **{split: sum(counts[split] > 0 for counts in speakers) for split in SPLITS},
        "shared": sum(sum(n > 0 for n in counts.values()) > 1 for counts in speakers),
    }
    assert found["lengths"] == {
        "shortest_s": 11_147 / 16_000, "median_s": 1.0, "longest_s": 20_001 / 16_000,
        "cut": 3, "padded": 3,
    }  # fmt: skip
    assert sum(found["snr_db"].values()) == 23
    assert store.snr_db is not None
    levels = Counter(store.snr_db[~np.isnan(store.snr_db)].tolist())
    assert found["snr_db"] == {f"{level:g}": n for level, n in levels.items()}
    assert found["without_noise"] == 1


def test_a_store_says_which_split_is_empty_and_which_classes_are_missing(shell, tmp_path):
    for name, takes in (("high", 6), ("low", 6), ("rare", 1)):
        for take in range(takes):
            corpus_trees.wav(
                tmp_path / "own" / name / f"{take}.wav", corpus_trees.sound(take, 8_000)
            )
    rows = "".join(
        f"{name}/{take}.wav,{name},{'ab'[take % 2]}\n"
        for name in ("high", "low")
        for take in range(6)
    )
    wanted = ("prepare", "folder", "--source", tmp_path / "own", "--name")
    _, _, err = shell(*wanted, "rare")
    assert "warning: 1 of 3 classes of label are missing from validation: rare" in err
    (tmp_path / "own" / "metadata.csv").write_text(f"file,label,site\n{rows}")
    shutil.rmtree(tmp_path / "own" / "rare")
    _, _, err = shell(*wanted, "by-site", "--split", "by:site")
    assert "warning: the test split is empty" in err
    found = shell.json(*wanted, "by-site", "--split", "by:site")["summary"]
    assert found["groups"] == [{"of": "site", "train": 1, "validation": 1, "test": 0, "shared": 0}]
    assert [text[:23] for text in found["warnings"]] == ["the test split is empty"]


def folder_store(home: Path, target: Path, **options) -> FeatureStore:
    corpus, recipe = recipe_for(CORPORA["folder"], options)
    return prepare(corpus, home, recipe, target).store


def test_of_many_classes_the_smallest_and_the_largest_are_shown(tmp_path):
    home = tmp_path / "own"
    for number in range(30):
        for take in range(1 + (number == 7) + (number != 4)):
            corpus_trees.wav(
                home / f"class{number:02d}" / f"{take}.wav", corpus_trees.sound(take, 4_000)
            )
    summary = summarise(folder_store(home, tmp_path / "x.zarr"))
    lines = summary.lines()
    assert len(summary.classes) == 30
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["smallest:", "class04"], ["largest:", "class07"],
    ]  # fmt: skip
    assert lines[4].startswith("  of 30 classes")
    assert len(lines) == 7 + len(summary.warnings)
    assert summary.groups[0].of == "recording"
    assert (sum(summary.groups[0].counts), summary.groups[0].shared) == (60, 0)


def test_lengths_are_of_recordings_and_what_is_padded_is_counted_in_segments(tmp_path):
    home = tmp_path / "own"
    for n, samples in enumerate((8_000, 40_000, 48_000, 36_000)):  # at 16 kHz
        corpus_trees.wav(home / "a" / f"{n}.wav", corpus_trees.sound(n, samples))
        corpus_trees.wav(home / "b" / f"{n}.wav", corpus_trees.sound(n, 16_000))
    summary = summarise(folder_store(home, tmp_path / "x.zarr"))
    assert summary.lengths == {
        "shortest_s": 0.5, "median_s": 1.0, "longest_s": 3.0, "cut": 0, "padded": 2,
    }  # fmt: skip


def test_a_store_of_version_0_1_0_has_a_table_without_lengths(noisy):
    store = FeatureStore(noisy.store.path)
    with_them = summarise(store).lines()
    del store.root["lengths"]
    without = summarise(store).lines()
    assert [line for line in with_them if not line.startswith("recordings:")] == without
    assert summarise(store).to_json()["lengths"] is None


def test_another_label_may_be_counted(noisy):
    found = summarise(noisy.store, "noise")
    want = counted(noisy.store, "noise")
    assert found.to_json()["classes"] == want
    with pytest.raises(ValueError, match="no label 'x'"):
        summarise(noisy.store, "x")


def test_the_lengths_do_not_count_what_was_rejected(gsc_home, tmp_path):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    for n in range(3):  # all that are longer than a segment
        path = home / ("zero", "one", "two")[n] / "0000ab02_nohash_0.wav"
        path.write_bytes(path.read_bytes()[:-10])
    lengths = summarise(prepare_gsc(home, tmp_path / "x.zarr", max_rejected=3).store).lengths
    assert (lengths["longest_s"], lengths["cut"], lengths["padded"]) == (1.0, 0, 3)
