"""What the backend of object stores has beyond the contract: new objects, addresses, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage import objects as objects_module
from antigram.pipeline.storage.objects import Objects
from antigram.pipeline.storage.opening import open_backend
from tests.support.object_store import served


@pytest.fixture(scope="module")
def server():
    with served() as url:
        yield url


def test_a_new_object_is_written_once_and_never_replaced(server):
    group = Objects.at("s3://bucket/new")
    assert group.put_new("a/b", b"one")
    assert not group.put_new("a/b", b"two")
    assert group.get("a/b") == b"one"


def test_a_write_whose_answer_was_lost_counts_as_written(server):
    group = Objects.at("s3://bucket/lost")
    assert group.put_new("a", b"one")
    assert group.put_new("a", b"one")  # as the client repeats it


@pytest.mark.parametrize(
    "address", ["s3:/bucket/a", "s3://", "s3:///a", "s3://bucket/../a", "s3://bucket/a//b"]
)
def test_what_is_no_address_is_refused_in_a_line(address, server):
    with pytest.raises(InputError, match="not the address of an object store"):
        open_backend(address)


def test_an_address_that_was_made_a_path_is_refused(server):
    with pytest.raises(InputError, match=r"local_copy\(\) downloads"):
        FeatureStore(Path("s3://bucket/features/a.zarr"))


def test_a_bucket_that_does_not_exist_is_named(server):
    group = Objects.at("s3://nobody-has-it/a")
    for ask in (lambda: group.get("zarr.json"), lambda: list(group.list()), group.groups):
        with pytest.raises(InputError, match=r"s3://nobody-has-it/a: .* has no such bucket"):
            ask()


def test_an_endpoint_that_does_not_answer_is_named(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects_module, "_RETRIES", {"max_retries": 0})
    for ask in (Objects.at("s3://bucket/elsewhere").get, Objects.at("s3://bucket/elsewhere").head):
        with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 does not answer"):
            ask("zarr.json")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    with pytest.raises(InputError, match=r"pip install 'antigram\[s3\]'"):
        Objects.at("s3://bucket/without")
