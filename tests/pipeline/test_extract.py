"""Archives as publishers make them are unpacked; hostile ones leave nothing, inside or outside."""

import gzip
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from antigram.pipeline.download.extract import ArchiveError, Limits, unpacked
from antigram.pipeline.errors import InputError

LONG = "long/" + "/".join(f"{'x' * 60}{n}" for n in range(5)) + "/end.wav"  # over tar's 100 and 255
TREE = {
    "word/a.wav": b"RIFF" + bytes(range(256)) * 9,
    "word/empty.wav": b"",
    "word/exactly.wav": b"x" * 1024,  # whole blocks: no padding
    "other/ä ö.wav": b"umlauts",
    LONG: b"deep",
    "list.txt": b"word/a.wav\n",
}


def tar_of(*members, mode="w:gz", **options):
    """Tar of ``(name, bytes)`` and of TarInfos."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def zip_of(*members, mode=0o644 | stat.S_IFREG, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = method
            opened.writestr(info, data)
    return buffer.getvalue()


def files_below(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.fixture
def unpack(tmp_path):
    """Write bytes as an archive and unpack it into ``tmp_path/inner/goal``."""

    def run(data, **limits):
        archive = tmp_path / "archive"
        archive.write_bytes(data)
        target = tmp_path / "inner" / "goal"
        target.parent.mkdir(exist_ok=True)
        with unpacked([archive], target, limits=Limits(**limits)) as tree:
            tree.rename(target)
        return target

    return run


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tar_of(*TREE.items(), format=tarfile.GNU_FORMAT), id="gnu"),
        pytest.param(tar_of(*TREE.items(), format=tarfile.PAX_FORMAT), id="pax"),
        pytest.param(tar_of(*TREE.items(), mode="w"), id="plain tar"),
        pytest.param(zip_of(*TREE.items()), id="deflated"),
        pytest.param(zip_of(*TREE.items(), method=zipfile.ZIP_STORED), id="stored"),
    ],
)
def test_what_the_standard_library_writes_comes_back(unpack, data):
    target = unpack(data)
    wanted = {**TREE}
    found = {p.relative_to(target).as_posix(): p for p in target.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == wanted
    assert [p.name for p in target.parent.iterdir()] == ["goal"]


def test_ustar_prefixes_git_headers_and_the_folder_itself(unpack):
    name = f"{'p' * 90}/{'n' * 90}.wav"
    folder = special("./", tarfile.DIRTYPE)
    data = tar_of(
        folder,
        special("./word", tarfile.DIRTYPE),
        ("./word/a.wav", b"a"),
        (name, b"prefix"),
        format=tarfile.USTAR_FORMAT,
    )
    target = unpack(data)
    assert (target / "word" / "a.wav").read_bytes() == b"a"
    assert (target / name).read_bytes() == b"prefix"
    with_comment = tar_of(
        ("b.wav", b"b"), format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * 40}
    )
    (target.rename(target.with_name("first")))
    assert (unpack(with_comment) / "b.wav").read_bytes() == b"b"


def test_sizes_in_pax_and_in_binary_are_read(unpack):
    info = tarfile.TarInfo("a.wav")
    info.size = 700
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\x80" + (700).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    target = unpack(bytes(header) + b"y" * 700 + bytes(324) + bytes(1024))
    assert (target / "a.wav").read_bytes() == b"y" * 700


def test_modes_are_dropped(unpack):
    info = special("tool.wav", tarfile.REGTYPE, mode=0o7777)
    target = unpack(tar_of(info, special("open", tarfile.DIRTYPE, mode=0o7777)))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((target / "tool.wav").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((target / "open").stat().st_mode) == 0o777 & ~mask


def damaged(data, at=-100):
    broken = bytearray(data)
    broken[at] ^= 0xFF
    return bytes(broken)


def swapped(data, old, new):
    """The archive with a name replaced by one of equal length, in all its places."""
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


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
        "is no UTF-8",
    ),
    "not UTF-8 in a zip": (swapped(zip_of(("b_.wav", b"")), b"b_.wav", b"b\xff.wav"), "no UTF-8"),
    "NUL in a zip": (swapped(zip_of(("b_.wav", b"")), b"b_.wav", b"b\0.wav"), "control"),
    "newline": (tar_of(("b\n.wav", b"x")), "control characters"),
    "NUL in a long name": (
        swapped(tar_of(("n" * 150, b""), mode="w", format=tarfile.GNU_FORMAT), b"n" * 150,
                b"n" * 70 + b"\0" + b"n" * 79),
        "control characters",
    ),
    "name too long": (tar_of(("n" * 300, b"x")), "too long"),
    "too deep": (zip_of(("d/" * 40 + "a.wav", b"x")), "too deep"),
    "cut in the middle": (tar_of(("a.wav", NOISE), ("b.wav", b"x"))[:3000], "damaged or cut"),
    "cut between members": (
        tar_of(("a.wav", b"x" * 512), ("b.wav", b"x"), mode="w")[:1024],
        "cut short",
    ),
    "wrong checksum of gzip": (damaged(tar_of(("a.wav", NOISE)), -6), "damaged"),
    "wrong checksum of tar": (damaged(tar_of(("a.wav", b"x"), mode="w"), 5), "wrong checksum"),
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
    "gzip of something else": (gzip.compress(b"no tar" * 200), "octal number|checksum"),
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
    with pytest.raises(ArchiveError, match="one too many"):
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, InputError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_of(*TREE.items()))

    def interrupted():
        with unpacked([archive], tmp_path / "goal") as tree:
            assert files_below(tree)
            raise error("now")

    with pytest.raises(error):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_the_rest_of_a_killed_run_is_no_hindrance(tmp_path):
    left = tmp_path / ".goal.partial" / "goal" / "old.wav"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"old")
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_of(*TREE.items()))
    with unpacked([archive], tmp_path / "goal") as tree:
        assert not (tree / "old.wav").exists()


def test_two_archives_may_share_folders_but_no_file(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(tar_of(("a/1.wav", b"1")))
    two.write_bytes(zip_of(("a/2.wav", b"2")))
    with unpacked([one, two], tmp_path / "goal") as tree:
        assert files_below(tree) == {"a/1.wav": b"1", "a/2.wav": b"2"}
    with (
        pytest.raises(ArchiveError, match="already under this or an equal name"),
        unpacked([one, one], tmp_path / "goal"),
    ):
        pass
