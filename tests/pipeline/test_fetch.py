"""Fetch one archive over HTTP: resuming, checking, and refusing."""

import gzip
import hashlib
import shutil

import numpy as np
import pytest

import antigram.pipeline.download.fetch
from antigram.pipeline.download.fetch import fetch
from antigram.pipeline.errors import InputError
from tests.support.http_server import HTML, Server

DATA = gzip.compress(np.random.default_rng(5).bytes(300_000))
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "archives"


def left(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_a_cut_transfer_goes_on(server, folder, known):
    archive, said = (server.whole if known else server.archive)("a.tar.gz", DATA), []
    server.cut = half = len(DATA) // 2
    with pytest.raises(InputError, match=f"Run again: it resumes after {half} bytes"):
        fetch(archive, folder)
    assert left(folder) == ["a.tar.gz.partial"]
    assert (folder / "a.tar.gz.partial").stat().st_size == half
    server.cut = None
    done = fetch(archive, folder, on_message=said.append)
    assert server.asked == [("a.tar.gz", None), ("a.tar.gz", f"bytes={half}-")]
    assert (done.sha256, done.size, done.verified) == (DIGEST, len(DATA), known)
    assert any("resuming after" in line for line in said)
    assert left(folder) == ["a.tar.gz"]


def test_a_server_without_ranges_is_asked_for_all(server, folder):
    archive, said = server.whole("a.tar.gz", DATA), []
    server.ranges, server.cut = False, 1000
    with pytest.raises(InputError, match="Run again"):
        fetch(archive, folder)
    server.cut = None
    assert fetch(archive, folder, on_message=said.append).sha256 == DIGEST
    assert any("does not resume" in line for line in said)


@pytest.mark.parametrize("surplus", [b"", b"more"], ids=["whole", "too long"])
def test_a_partial_file_that_lacks_nothing_or_is_too_long(server, folder, surplus):
    folder.mkdir()
    (folder / "a.tar.gz.partial").write_bytes(DATA + surplus)
    assert fetch(server.archive("a.tar.gz", DATA), folder).sha256 == DIGEST
    assert len(server.asked) == (2 if surplus else 1)


def test_a_partial_file_of_another_content_is_found_out(server, folder):
    folder.mkdir()
    (folder / "a.tar.gz.partial").write_bytes(b"x" * 1000)
    archive = server.whole("a.tar.gz", DATA)
    with pytest.raises(InputError, match="does not match"):
        fetch(archive, folder)
    assert left(folder) == []
    assert fetch(archive, folder).verified


def test_another_file_than_the_published_one_is_refused(server, folder):
    wrong = server.archive("a.tar.gz", DATA, size=len(DATA), known_hash="sha256:" + "0" * 64)
    with pytest.raises(InputError, match=r"does not match.*expected.*got.*Run again") as refused:
        fetch(wrong, folder)
    assert DIGEST in str(refused.value)
    longer = server.archive("a.tar.gz", DATA, size=len(DATA) + 1)
    with pytest.raises(InputError, match=f"has {len(DATA)} bytes, the published file"):
        fetch(longer, folder)
    assert left(folder) == []


def test_an_error_page_is_refused(server, folder):
    page = server.archive("a.tar.gz", HTML)
    with pytest.raises(InputError, match="An error page"):
        fetch(page, folder)
    server.status = 503
    with pytest.raises(InputError, match="answers 503"):
        fetch(page, folder)
    assert left(folder) == []


def test_no_server_is_one_line(server, folder):
    archive = server.whole("a.tar.gz", DATA)
    server.http.server_close()  # nobody listens any more
    with pytest.raises(InputError, match="Run again: it retries") as refused:
        fetch(archive, folder)
    assert str(refused.value).startswith(f"{archive.url}: ConnectionError: ")
    assert "\n" not in str(refused.value)


def test_a_server_that_tells_no_size(server, folder):
    server.sized = False
    ticks = []
    done = fetch(server.archive("a.tar.gz", DATA), folder, on_progress=lambda *t: ticks.append(t))
    assert done.sha256 == DIGEST
    assert all(done < total for _, done, total in ticks)


def test_room_is_checked_when_the_size_is_told(server, folder, monkeypatch):
    class Usage:
        free = 2 * len(DATA)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"[GM]B are free.*Make room"):
        fetch(server.archive("a.tar.gz", DATA), folder)
    assert left(folder) == []


def test_a_cut_transfer_of_untold_size_goes_on(server, folder):
    archive = server.whole("a.tar.gz", DATA)
    server.sized, server.cut = False, len(DATA) // 2
    with pytest.raises(InputError, match=f"{len(DATA) // 2} of {len(DATA)} bytes came"):
        fetch(archive, folder)
    assert left(folder) == ["a.tar.gz.partial"]
    server.cut = None
    assert fetch(archive, folder).sha256 == DIGEST


def test_a_server_of_untold_size_that_sends_too_much_is_refused(server, folder):
    archive = server.whole("a.tar.gz", DATA)
    server.files["a.tar.gz"], server.sized = DATA + b"more", False
    with pytest.raises(InputError, match=rf"sends more than the {len(DATA)} bytes"):
        fetch(archive, folder)
    assert left(folder) == []


def test_a_transfer_of_unknown_size_stops_before_the_disk_is_full(server, folder, monkeypatch):
    class Usage:
        free = len(DATA)

    monkeypatch.setattr(antigram.pipeline.download.fetch, "_CHUNK", 10_000)
    monkeypatch.setattr(antigram.pipeline.download.fetch, "_CHECK_EVERY", 20_000, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    server.sized = False
    with pytest.raises(InputError, match=r"MB are free.*Make room"):
        fetch(server.archive("a.tar.gz", DATA), folder)
    assert (folder / "a.tar.gz.partial").stat().st_size < len(DATA)
