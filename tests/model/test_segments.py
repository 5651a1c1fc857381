"""A feature store in a DataLoader: segments as the trainer has them."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from antigram.model.training.batches import Batches
from antigram.model.training.segments import SegmentDataset
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from tests.support.nets import CPU
from tests.support.stores import make_store


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_trainer(workers, store):
    data = SegmentDataset(store, split="validation")
    (want,) = Batches(store, "label", None, 99, CPU).passes(store.rows("validation", "label"))
    ((x, y, ids),) = DataLoader(data, 99, num_workers=workers)
    assert torch.equal(x, want.x)
    assert torch.equal(y, want.y)
    assert list(ids) == [store.clip_ids[row] for row in want.clips]
    assert data.classes == store.classes["label"]


def test_a_segment_is_read_by_its_index(store):
    data = SegmentDataset(store)
    x, y, clip_id = data[-1]
    row = store.rows("train")[-1]
    assert np.array_equal(x[0], store.features.take([row])[0])
    assert (y, clip_id, len(data)) == (
        store.labels("label")[row],
        store.clip_ids[row],
        len(store.rows("train")),
    )
    with pytest.raises(IndexError):
        data[len(data)]
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][0], data[3][0])


def test_segments_without_a_class_are_left_out(spoken):
    data = SegmentDataset(spoken, "speaker")
    known = spoken.rows("train", "speaker")
    assert 0 < len(known) < len(spoken.rows("train"))
    assert data.ids == [spoken.clip_ids[row] for row in known]
    assert min(y for _, y, _ in data) == 0


def test_features_of_float16_are_given_as_float32(corpus, tmp_path):
    store = make_store(corpus, tmp_path / "features" / "half.zarr", dtype="float16")
    x, _, _ = SegmentDataset(store)[0]
    assert (x.dtype, store[0]["x"].dtype) == (torch.float32, np.float32)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"label": "noise"}, r"no label 'noise'; it has label"),
        ({"split": "dev"}, r"split is 'dev'; wanted: train"),
    ],
)
def test_a_label_or_split_that_is_not_there_is_named(given, match, store):
    with pytest.raises(InputError, match=match):
        SegmentDataset(store, **given)


def test_a_store_is_a_dataset_itself(store):
    loader = DataLoader(FeatureStore(store.path), 4)  # type: ignore[arg-type]
    batch = next(iter(loader))
    assert np.array_equal(batch["x"][:, 0], store.features.take([0, 1, 2, 3]))
    assert batch["labels"]["label"].tolist() == store.labels("label")[:4].tolist()
    assert list(batch["clip_id"]) == store.clip_ids[:4]
    assert store[-1]["clip_id"] == store.clip_ids[-1]
    assert sum(1 for _ in store) == len(store)
    with pytest.raises(IndexError):
        store[len(store)]
