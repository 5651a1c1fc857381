"""What may be downloaded, and where from; fetched, checked, unpacked, and put in its place.

Every size and hash was copied from the source named beside it, none was computed here: no archive
was ever fetched on the machine this was written on. None: nobody was found who publishes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.corpus import Corpus, CorpusError, locate
from antigram.pipeline.download.extract import Limits, unpacked
from antigram.pipeline.download.fetch import UNPACKED, Archive, Fetched, check_room, fetch
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.chunks import fsync_folder
from antigram.pipeline.workspace import locked

__all__ = ["SOURCES", "Downloaded", "download"]

_DEFAULT_SUBSET = "train-clean-100"

# Size, SHA-256: tensorflow/datasets, tensorflow_datasets/url_checksums/librispeech.txt; the same
# hashes in pytorch/audio, torchaudio/datasets/librispeech.py.
_LIBRISPEECH = {
    "dev-clean": (337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": (
        6387309499,
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    ),
    "train-clean-360": (
        23049477885,
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    ),
    "train-other-500": (
        30593501606,
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    ),
}

SOURCES: dict[str, tuple[Archive, ...]] = {
    # Size, SHA-256: tensorflow/datasets, tensorflow_datasets/url_checksums/speech_commands.txt; the
    # same hash in torchaudio's speechcommands.py. This address: torchaudio's, which has TLS.
    "gsc": (
        Archive(
            url="https://storage.googleapis.com/download.tensorflow.org/data/"
            "speech_commands_v0.02.tar.gz",
            name="speech_commands_v0.02.tar.gz",
            size=2428923189,
            known_hash="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        ),
    ),
    # GitHub makes the file anew when it is asked for, tells no size and does not resume. The
    # repository has no releases: this is what it holds today.
    "ms-snsd": (
        Archive(
            url="https://github.com/microsoft/MS-SNSD/archive/refs/heads/master.zip",
            name="MS-SNSD-master.zip",
        ),
    ),
    **{
        f"librispeech/{subset}": (
            Archive(
                url=f"https://www.openslr.org/resources/12/{subset}.tar.gz",
                name=f"librispeech-{subset}.tar.gz",
                size=size,
                known_hash=f"sha256:{digest}",
            ),
        )
        for subset, (size, digest) in _LIBRISPEECH.items()
    },
    # tensorflow_datasets has hashes of the TFRecords only. The same bucket as
    # download.magenta.tensorflow.org, with TLS.
    "nsynth": tuple(
        Archive(
            url="https://storage.googleapis.com/magentadata/datasets/nsynth/"
            f"nsynth-{split}.jsonwav.tar.gz",
            name=f"nsynth-{split}.jsonwav.tar.gz",
        )
        for split in ("train", "valid", "test")
    ),
    # MD5: mirdata, mirdata/datasets/good_sounds.py; Zenodo publishes MD5s.
    "good-sounds": (
        Archive(
            url="https://zenodo.org/records/820937/files/good-sounds.zip?download=1",
            name="good-sounds.zip",
            known_hash="md5:2137bbb2d32c1d60aa51e1301225f541",
        ),
    ),
    # tensorflow_datasets has a hash of v1.0.9 as tar.gz, which has five speakers; no publisher has
    # one of this tag, which has six. GitHub promises no bytes for what it makes anew.
    "fsdd": (
        Archive(
            url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/"
            "v1.0.10.zip",
            name="free-spoken-digit-dataset-1.0.10.zip",
        ),
    ),
}

_NOTHING = {
    "iemocap": "USC gives it by agreement only. Send the signed form, "
    "https://sail.usc.edu/iemocap/iemocap_release.htm, and then run "
    "`antigram prepare iemocap --source DIR`",
    "folder": "it is your own recordings: `antigram prepare folder --source DIR`",
    "demo": "`antigram prepare demo` synthesises it on this machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What `download` did; ``path`` is what `prepare` looks for."""

    corpus: str
    path: Path
    archives: tuple[Fetched, ...] = ()

    @property
    def left_alone(self) -> bool:
        """Whether the corpus was there already, and nothing was fetched."""
        return not self.archives

    def to_json(self) -> dict[str, Any]:
        """Fields of ``download --json``; hashes by the archive's name, as NSynth has three."""
        return {
            "corpus": self.corpus,
            "path": str(self.path),
            "sha256": {each.path.name: each.sha256 for each in self.archives},
            "bytes": sum(each.size for each in self.archives),
            "verified": bool(self.archives) and all(each.verified for each in self.archives),
            "left_alone": self.left_alone,
        }


def download(
    corpus_name: str,
    target: Path,
    *,
    subset: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    sources: Mapping[str, Sequence[Archive]] | None = None,
    limits: Limits | None = None,
) -> Downloaded:
    """Put a corpus into ``target``, as a whole or not at all; a subset is added to those there.

    Archives are kept in the folder ``archives`` beside it, and not fetched a second time.

    Args:
        corpus_name: one of `SOURCES`.
        target: what becomes the corpus's folder, or the folder above it.
        subset: of LibriSpeech; default: train-clean-100.
        on_progress: shows progress, in megabytes.
        on_message: shows a line to the user.
        sources: in place of `SOURCES`.
        limits: what the archives may unpack to.

    Raises:
        InputError: there is nothing to download, the network failed, the archive is another one,
            the disk is too small, or something else is in the way.
    """
    corpus = find_corpus(corpus_name)
    inform = on_message or (lambda _text: None)
    if corpus_name == "librispeech":
        subset = subset or _DEFAULT_SUBSET
    archives = _archives(corpus_name, subset, SOURCES if sources is None else sources)
    with locked(target, "downloading"):
        home = _home(corpus, target)
        if home is not None and (subset is None or (home / subset).exists()):
            inform(f"{corpus_name}: already there, in {home}; nothing to do")
            return Downloaded(corpus=corpus_name, path=target)
        if home is None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(
                f"{target}: is there, and holds no {corpus_name}; wanted nothing there, or the "
                "corpus. Move it away, or choose another --workspace."
            )
        kept = target.parent / "archives"
        kept.mkdir(exist_ok=True)
        # Those of unknown size are checked when the server tells it.
        packed = sum(archive.size or 0 for archive in archives)
        have = sum(_bytes_there(kept, archive) for archive in archives if archive.size)
        check_room(kept, (1 + UNPACKED) * packed - have, corpus_name)
        fetched = tuple(
            fetch(archive, kept, on_progress=on_progress, on_message=on_message)
            for archive in archives
        )
        check_room(kept, UNPACKED * sum(each.size for each in fetched), corpus_name)
        with unpacked(
            [f.path for f in fetched], target, limits=limits, on_progress=on_progress
        ) as tree:
            new = _home(corpus, tree)
            if new is None or (subset is not None and not (new / subset).is_dir()):
                names = ", ".join(str(each.path) for each in fetched)
                raise InputError(
                    f"{names}: unpacked, but no {subset or corpus_name} as antigram knows it is "
                    "inside. Nothing was kept but the archive; report it, or unpack it by hand."
                )
            if home is not None and subset is not None:
                (new / subset).rename(home / subset)
            else:
                tree.rename(target)  # takes the place of an empty folder, too
            fsync_folder(target.parent if home is None else home)
    inform(f"kept: {', '.join(str(each.path) for each in fetched)}; delete if you need the room")
    return Downloaded(corpus=corpus_name, path=target, archives=fetched)


def _bytes_there(kept: Path, archive: Archive) -> int:
    """Bytes that need not be fetched."""
    there = [p for p in (kept / archive.name, kept / f"{archive.name}.partial") if p.is_file()]
    return there[0].stat().st_size if there else 0


def _home(corpus: Corpus, folder: Path) -> Path | None:
    try:
        return locate(corpus, [folder])
    except CorpusError:
        return None


def _archives(
    name: str, subset: str | None, sources: Mapping[str, Sequence[Archive]]
) -> Sequence[Archive]:
    if name in _NOTHING:
        raise InputError(f"{name}: there is nothing to download: {_NOTHING[name]}")
    subsets = [key.partition("/")[2] for key in sources if key.startswith(f"{name}/")]
    if subset is not None and not subsets:
        raise InputError(f"--subset {subset!r}: {name} has no subsets; leave it out")
    if subset is not None and subset not in subsets:
        raise InputError(f"--subset {subset!r}: wanted one of {', '.join(subsets)}")
    key = name if subset is None else f"{name}/{subset}"
    if key not in sources:
        raise InputError(f"{name}: no address is known; {', '.join(sources)} can be downloaded")
    return sources[key]
