"""Malicious archives leave no file, inside or outside, and cannot make us allocate memory."""

import contextlib
import gzip
import os
import stat
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antigram.pipeline.download.extract import ArchiveError, unpacked
from tests.support.archives import (
    END,
    FILE,
    damaged,
    header_of,
    in_blocks,
    in_pax,
    special,
    swapped,
    tar_of,
    zip_of,
)

NOISE = np.random.default_rng(1).bytes(5000)
ZIP = zip_of(("a.wav", NOISE))
HOSTILE = {
    "parent": (tar_of(("../out.wav", b"x")), "leaves the folder"),
    "parent in the middle": (tar_of(("a/../../out.wav", b"x")), "leaves the folder"),
    "parent in a zip": (zip_of(("../out.wav", b"x")), "leaves the folder"),
    "absolute": (tar_of(("/tmp/antigram-out.wav", b"x")), "is absolute"),
    "absolute in a zip": (zip_of(("/tmp/antigram-out.wav", b"x")), "is absolute"),
    "drive": (zip_of(("C:/out.wav", b"x")), "another system's"),
    "backslash": (zip_of(("..\\out.wav", b"x")), "another system's"),
    "backslash in a tar": (tar_of(("a\\..\\out.wav", b"x")), "another system's"),
    "symlink": (tar_of(special("a", tarfile.SYMTYPE, linkname="..")), "a symbolic link"),
    "file through a symlink": (
        tar_of(special("a", tarfile.SYMTYPE, linkname=".."), ("a/out.wav", b"x")),
        "a symbolic link",
    ),
    "symlink in a zip": (zip_of(("a", b".."), mode=0o777 | stat.S_IFLNK), "a link or device"),
    "hard link": (tar_of(special("a", tarfile.LNKTYPE, linkname="/etc/passwd")), "a hard link"),
    "long link": (tar_of(special("a", tarfile.LNKTYPE, linkname="x" * 300)), "wanted files"),
    "device": (tar_of(special("a", tarfile.CHRTYPE, devmajor=1, devminor=5)), "a character"),
    "block device": (tar_of(special("a", tarfile.BLKTYPE)), "a block device"),
    "fifo": (tar_of(special("a", tarfile.FIFOTYPE)), "a fifo"),
    "fifo in a zip": (zip_of(("a", b""), mode=0o644 | stat.S_IFIFO), "a link or device"),
    "sparse": (
        tar_of(special("a", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1"})),
        "files and folders only",
    ),
    "twice": (tar_of(("a.wav", b"x"), ("./a.wav", b"y")), "is there twice"),
    "file where a folder is": (tar_of(("a/b.wav", b"x"), ("a", b"y")), "is a file and a folder"),
    "folder where a file is": (tar_of(("a", b"x"), ("a/b.wav", b"y")), "is below a file"),
    "folder in place of a file": (
        tar_of(("a", b"x"), special("a", tarfile.DIRTYPE)),
        "is below a file",
    ),
    "no name": (tar_of(("", b"x")), "is a file and a folder"),
    "not UTF-8": (
        tar_of(("b\udcff.wav", b"x"), format=tarfile.GNU_FORMAT, errors="surrogateescape"),
        "is not UTF-8",
    ),
    "not UTF-8 in a zip": (swapped(zip_of(("b_.wav", b"")), b"b_.wav", b"b\xff.wav"), "not UTF-8"),
    "NUL in a zip": (swapped(zip_of(("b_.wav", b"")), b"b_.wav", b"b\0.wav"), "control"),
    "newline": (tar_of(("b\n.wav", b"x")), "control characters"),
    "NUL in a pax name": (
        swapped(tar_of(("n" * 150, b""), mode="w"), b"n" * 150, b"n" * 70 + b"\0" + b"n" * 79),
        "control characters",
    ),
    "parent before a NUL in a long name": (
        swapped(tar_of(("n" * 150, b""), mode="w", format=tarfile.GNU_FORMAT), b"n" * 150,
                b"../out.wav\0" + b"n" * 139),
        "leaves the folder",
    ),
    "name too long": (tar_of(("n" * 300, b"x")), "too long"),
    "too deep": (zip_of(("d/" * 40 + "a.wav", b"x")), "too deep"),
    "cut in the middle": (tar_of(("a.wav", NOISE), ("b.wav", b"x"))[:3000], "damaged or cut"),
    "cut between members": (
        tar_of(("a.wav", b"x" * 512), ("b.wav", b"x"), mode="w")[:1024],
        "cut short",
    ),
    "wrong checksum of gzip": (damaged(tar_of(("a.wav", NOISE)), -6), "damaged"),
    "wrong checksum of tar": (damaged(tar_of(("a.wav", b"x"), mode="w"), 5), "bad checksum"),
    "wrong checksum later on": (
        damaged(tar_of(("a.wav", b"x"), ("b.wav", b"y"), mode="w"), 1029),
        "a header is damaged or missing",
    ),
    "wrong checksum of zip": (damaged(zip_of(("a.wav", NOISE)), 900), "damaged"),
    "zip without an end": (zip_of(("a.wav", NOISE))[:4000], "damaged"),
    "zip whose list begins before it": (
        swapped(ZIP, ZIP[-6:-2], b"\xff\xff\0\0"),
        "damaged",
    ),
    "encrypted": (
        swapped(zip_of(("a.wav", b"x")), b"\1\2\x14\3\x14\0\0", b"\1\2\x14\3\x14\0\1"),
        "encrypted",
    ),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "begins with b'<!DOCTYPE html>"),
    "empty": (b"", "begins with b''"),
    "gzip of something else": (gzip.compress(b"no tar" * 200), "invalid header"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing(unpack, tmp_path, case):
    data, said = HOSTILE[case]
    with pytest.raises(ArchiveError, match=said) as refused:
        unpack(data)
    assert str(tmp_path / "archive") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] in (["archive", "inner"], ["inner", "archive"])
    assert list((tmp_path / "inner").iterdir()) == []
    assert not os.path.lexists("/tmp/antigram-out.wav")


@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_bombs_are_refused(unpack, tmp_path, make):
    data = make(("a.wav", bytes(3 << 20)))
    for limits, said in (
        ({"harmless_bytes": 1000}, "wanted"),  # 1000 to 1, 50 is allowed
        ({"total_bytes": 1 << 20}, "wanted"),
        ({"file_bytes": 1 << 20}, "3145728 bytes"),
    ):
        with pytest.raises(ArchiveError, match=said):
            unpack(data, **limits)
    with pytest.raises(ArchiveError, match="is member 9; wanted at most 8"):
        unpack(make(*((f"{n}.wav", b"") for n in range(9))), members=8)
    assert list((tmp_path / "inner").iterdir()) == []
    assert (unpack(data) / "a.wav").stat().st_size == 3 << 20


def test_a_bomb_in_headers_or_behind_the_end_is_refused(unpack):
    bomb = special("a.wav", tarfile.REGTYPE, pax_headers={"comment": "x" * 100_000})
    with pytest.raises(ArchiveError, match="extended header"):
        unpack(tar_of(bomb))
    behind = gzip.compress(tar_of(("a.wav", b"x"), mode="w") + bytes(3 << 20))
    with pytest.raises(ArchiveError, match="far more than its size"):
        unpack(behind, harmless_bytes=1 << 20)


MANY = 20_000  # blocks: 10 MB
SWOLLEN = {
    "pax header of 1 GB": header_of("p", tarfile.XHDTYPE, 1 << 30) + bytes(512 * MANY),
    "long name of 2^80 bytes": header_of("p", b"L", 1 << 80) + bytes(512 * MANY),
    "long name of negative size": header_of("p", b"L", b"\xff" * 10 + b"\xf0\0") + FILE,
    "chain of pax headers": header_of("p", tarfile.XGLTYPE) * MANY + FILE,
    "chain of long names": (header_of("p", b"L", 1) + in_blocks(b"x")) * (MANY // 2) + FILE,
    "map of a sparse file": in_pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header_of("a.wav", size=512 * MANY)
    + in_blocks(b"9999999\n")
    + b"1\n" * (256 * MANY),
    "map of an old sparse file": header_of("a.wav", tarfile.GNUTYPE_SPARSE)
    + (bytes(504) + b"\1" + bytes(7)) * MANY,
    "file of negative size": FILE + header_of("b.wav", size=b"\xff" * 10 + b"\xf0\0") + FILE,
    "file of negative octal size": FILE + header_of("b.wav", size=b"-0000001000\0") + FILE,
    "file of negative size in pax": in_pax(b"12 size=-99\n") + FILE,
    "file of a size that is no number": in_pax(b"12 size=abc\n") + FILE,
    "file of 2^80 bytes": header_of("a.wav", size=1 << 80) + bytes(512 * MANY),
    "file of 2^80 bytes and of an unknown kind": header_of("a.wav", b"Z", 1 << 80),
    "records for all members, without end": b"".join(
        header_of("p", tarfile.XGLTYPE, 7000)
        + in_blocks(b"7000 k%04d=%b\n" % (n, b"v" * 6988))
        + header_of(f"{n}.wav")
        for n in range(MANY // 20)
    ),
}


@pytest.mark.parametrize("case", SWOLLEN)
def test_headers_take_no_memory_that_they_name(unpack, tmp_path, case):
    data = gzip.compress(SWOLLEN[case] + END, 1)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError):
            unpack(data)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 << 20  # seen: 0.6 MB, with records for all members
    assert list((tmp_path / "inner").iterdir()) == []


def test_a_pax_header_cannot_swell_by_its_own_records(unpack):
    # Each record's key goes on to the one "=": Pythons differ in whether that is refused.
    records = b"2 " * 3500 + b"=\n"
    tracemalloc.start()
    try:
        with contextlib.suppress(ArchiveError):
            unpack(gzip.compress(in_pax(records) + FILE + END))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20  # seen: 13 MB
    finally:
        tracemalloc.stop()


SEEDS = [
    tar_of(("a/b.wav", b"x" * 700), ("n" * 150, b"y"), ("c.wav", b""), mode="w", format=form)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
]
FIELDS = {  # offset -> values that mean something there
    0: [b"/", b"..", b"\0", b"\xff", b"\\"],
    124: [b"\xff" * 12, b"-0000000010\0", b"\x80" + b"\xff" * 11, b"77777777777\0", bytes(12)],
    156: [bytes([kind]) for kind in b"\00123457DKLMNSVXgx"],
    482: [b"\1"],
}


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.one_of(
                *(st.tuples(st.just(at), st.sampled_from(v)) for at, v in FIELDS.items()),
                st.tuples(st.integers(0, 511), st.binary(min_size=1, max_size=3)),
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.one_of(st.none(), st.integers(0, 5000)),
)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_mutated_tar_ends_in_anything_but_files_or_a_reason(
    seed, edits, cut, tmp_path, monkeypatch
):
    monkeypatch.setattr("os.sync", lambda: None)
    raw = bytearray(seed)
    for block, (at, value), is_summed in edits:
        first = 512 * block
        raw[first + at : first + at + len(value)] = value
        if is_summed:
            raw[first + 148 : first + 156] = b" " * 8
            raw[first + 148 : first + 156] = b"%06o\0 " % sum(raw[first : first + 512])
    archive = tmp_path / "archive"
    archive.write_bytes(raw[:cut])
    with contextlib.suppress(ArchiveError), unpacked([archive], tmp_path / "goal") as tree:
        assert all(p.is_file() or p.is_dir() for p in tree.rglob("*"))
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]
