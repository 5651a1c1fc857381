"""Download corpora from a local server: what is checked, extracted, published and refused."""

import hashlib
import io
import shutil
import tarfile
from dataclasses import replace

import pytest

from antigram.pipeline.corpora import CORPORA, find_corpus
from antigram.pipeline.corpus import locate
from antigram.pipeline.download.corpora import download
from antigram.pipeline.errors import InputError
from tests.support import corpus_trees
from tests.support.archives import tar_gz, zipped
from tests.support.http_server import Server
from tests.support.shell import Shell


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "corpora" / "gsc"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """An archive of GSC, without a top folder, as it is published."""
    return tar_gz(corpus_trees.gsc(tmp_path_factory.mktemp("tree")), "./")


def holding(name, *archives):
    """Return a corpus with other archives."""
    return replace(CORPORA[name], archives=archives)


def there(target):
    """Return the names beside the target, without its lock."""
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def test_a_corpus_is_fetched_checked_and_found(server, target, words, gsc_home):
    archive, said, ticks = server.whole("words.tar.gz", words), [], []
    done = download(
        holding("gsc", archive),
        target,
        on_message=said.append,
        on_progress=lambda *t: ticks.append(t),
    )
    assert done.to_json() == {
        "corpus": "gsc",
        "path": str(target),
        "sha256": {"words.tar.gz": hashlib.sha256(words).hexdigest()},
        "bytes": len(words),
        "verified": True,
        "left_alone": False,
    }
    assert locate(CORPORA["gsc"], [target]) == target
    same = [p.relative_to(gsc_home) for p in gsc_home.rglob("*") if p.is_file()]
    assert all((target / p).read_bytes() == (gsc_home / p).read_bytes() for p in same)
    assert there(target) == ["archives", "gsc"]
    assert [p.name for p in (target.parent / "archives").iterdir()] == ["words.tar.gz"]
    assert not any("cannot be checked" in line for line in said)
    assert all(0 <= done <= total for _, done, total in ticks)

    again = download(holding("gsc", archive), target, on_message=said.append)
    assert again.left_alone
    assert "nothing to do" in said[-1]
    assert server.asked == [("words.tar.gz", None)]


def test_a_whole_archive_is_not_fetched_again(server, target, words):
    archive = server.whole("words.tar.gz", words)
    kept = target.parent / "archives" / "words.tar.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(words)
    assert download(holding("gsc", archive), target).archives[0].verified
    assert server.asked == []


def test_a_spoiled_archive_is_fetched_again(server, target, words):
    archive = server.whole("words.tar.gz", words)
    kept = target.parent / "archives" / "words.tar.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(words[:-1] + b"x")
    download(holding("gsc", archive), target)
    assert kept.read_bytes() == words


def test_without_a_published_hash_an_archive_is_reported_unchecked(server, target, words):
    said = []
    archive = server.archive("words.tar.gz", words)
    done = download(holding("gsc", archive), target, on_message=said.append)
    assert done.to_json()["verified"] is False
    digest = hashlib.sha256(words).hexdigest()
    assert any("cannot be checked" in line and digest in line for line in said)

    md5 = "md5:" + hashlib.md5(words, usedforsecurity=False).hexdigest()
    other = target.with_name("other")
    archive = server.archive("2.tar.gz", words, known_hash=md5)
    done = download(holding("gsc", archive), other)
    assert done.archives[0].verified
    assert done.archives[0].sha256 == digest


@pytest.mark.parametrize("stage", ["fetching", "unpacking"])
def test_an_interruption_publishes_nothing(server, target, stage):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for n in range(200):
            tar.addfile(tarfile.TarInfo(f"zero/{n:08x}_nohash_0.wav"))
    served = holding("gsc", server.whole("words.tar.gz", buffer.getvalue()))

    def interrupt(now, *_):
        if now.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(served, target, on_progress=interrupt)
    assert there(target) == ["archives"]
    download(served, target)
    assert len(list((target / "zero").iterdir())) == 200
    assert len(server.asked) == 1  # all of it came in the first piece, and was kept


def test_a_strange_archive_publishes_nothing(server, target):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("zero.txt"))
    with pytest.raises(InputError, match="no gsc as antigram knows it"):
        download(holding("gsc", server.whole("a.tar.gz", buffer.getvalue())), target)
    link = tarfile.TarInfo("zero")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(InputError, match="a symbolic link"):
        download(holding("gsc", server.whole("b.tar.gz", buffer.getvalue())), target)
    assert there(target) == ["archives"]


def test_what_is_in_the_way_is_left_alone(server, target, words):
    served = holding("gsc", server.whole("words.tar.gz", words))
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no gsc"):
        download(served, target)
    assert (target / "mine.txt").read_text() == "mine"
    (target / "mine.txt").unlink()  # an empty folder is no hindrance
    download(served, target)
    assert locate(CORPORA["gsc"], [target]) == target


def test_subsets_of_librispeech_are_added(server, tmp_path):
    target, archives = tmp_path / "librispeech", []
    for subset in ("train-clean-100", "dev-clean"):
        tree = tmp_path / subset
        path = tree / "LibriSpeech" / subset / "19" / "198" / "19-198-0000.flac"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"fLaC")
        (tree / "LibriSpeech" / "README.TXT").write_text("the same in all")
        archive = server.whole(f"{subset}.tar.gz", tar_gz(tree / "LibriSpeech", "LibriSpeech"))
        archives.append(replace(archive, subset=subset))
    served = holding("librispeech", *archives)
    download(served, target)
    assert [p.name for p in target.glob("LibriSpeech/*-*")] == ["train-clean-100"]
    for _ in range(2):
        done = download(served, target, subset="dev-clean")
    assert done.left_alone
    home = target / "LibriSpeech"
    assert {p.name for p in home.iterdir()} == {"train-clean-100", "dev-clean", "README.TXT"}
    assert [name for name, _ in server.asked] == ["train-clean-100.tar.gz", "dev-clean.tar.gz"]


def test_archives_with_a_top_folder_and_in_several_parts(server, tmp_path, noise_home):
    tree = corpus_trees.fsdd(tmp_path / "tree")
    repository = server.archive("fsdd.zip", zipped(tree, "free-spoken-digit-dataset-1.0.10"))
    noise = server.archive("noise.zip", zipped(noise_home, "MS-SNSD-master"))
    parts = []
    for split in ("train", "valid", "test"):
        folder = tmp_path / f"nsynth-{split}"
        (folder / "audio").mkdir(parents=True)
        (folder / "examples.json").write_text("{}")
        parts.append(server.archive(f"{split}.tar.gz", tar_gz(folder, folder.name)))
    for name, archives in {"fsdd": [repository], "nsynth": parts, "ms-snsd": [noise]}.items():
        target = tmp_path / "corpora" / name
        done = download(holding(name, *archives), target)
        assert len(done.to_json()["sha256"]) == len(archives)
        assert locate(CORPORA[name], [target]).is_relative_to(target)


@pytest.mark.parametrize(
    ("name", "subset", "said"),
    [
        ("iemocap", None, "signed form"),
        ("folder", None, "nothing to download"),
        ("demo", None, "synthesises it"),
        ("nonsense", None, "antigram knows"),
        ("gsc", "dev-clean", "has no subsets"),
        ("librispeech", "dev", "wanted one of"),
    ],
)
def test_what_cannot_be_downloaded_is_said(tmp_path, name, subset, said):
    with pytest.raises(InputError, match=said):
        download(find_corpus(name), tmp_path / name, subset=subset)
    assert list(tmp_path.iterdir()) == []


def test_the_command(server, words, tmp_path, capsys, monkeypatch):
    shell = Shell(tmp_path, capsys, monkeypatch)
    served = holding("gsc", server.whole("words.tar.gz", words))
    monkeypatch.setitem(CORPORA, "gsc", served)
    found = shell.json("download", "gsc")
    assert found["path"] == "workspace/corpora/gsc"
    assert (found["bytes"], found["verified"]) == (len(words), True)
    assert shell.json("download", "gsc")["left_alone"]
    store = shell.json("prepare", "gsc", "--limit-per-class", "2")
    assert sum(store["clips"].values()) > 0
    shell.refused(2, "signed form", "download", "iemocap")
    code, out, _ = shell("--workspace", "other", "download", "gsc")
    assert code == 0
    assert "as published" in out


def test_room_is_checked_before_anything_is_asked_for(server, target, words, monkeypatch):
    class Usage:
        free = 2 * len(words)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"[GM]B are free.*Make room"):
        download(holding("gsc", server.whole("words.tar.gz", words)), target)
    assert server.asked == []
