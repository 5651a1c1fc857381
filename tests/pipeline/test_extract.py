"""Archives as publishers make them are extracted; an interruption leaves nothing."""

import os
import stat
import tarfile
import zipfile

import pytest

from antigram.pipeline.download.extract import ArchiveError, unpacked
from antigram.pipeline.errors import InputError
from tests.support.archives import (
    END,
    FILE,
    TREE,
    header_of,
    in_blocks,
    in_pax,
    special,
    swapped,
    tar_of,
    zip_of,
)
from tests.support.files import bytes_of


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
    target = unpack(header_of("a.wav", size=700) + in_blocks(b"y" * 700) + END)
    assert (target / "a.wav").read_bytes() == b"y" * 700
    target.rename(target.with_name("first"))
    target = unpack(in_pax(b"12 size=700\n") + FILE + in_blocks(b"y" * 700) + END)
    assert (target / "a.wav").read_bytes() == b"y" * 700


def test_a_long_name_ends_at_its_nul_as_in_gnu_tar(unpack):
    data = tar_of(("n" * 150, b"x"), mode="w", format=tarfile.GNU_FORMAT)
    target = unpack(swapped(data, b"n" * 150, b"n" * 70 + b"\0" + b"n" * 79))
    assert [p.name for p in target.iterdir()] == ["n" * 70]


def test_modes_are_dropped(unpack):
    info = special("tool.wav", tarfile.REGTYPE, mode=0o7777)
    target = unpack(tar_of(info, special("open", tarfile.DIRTYPE, mode=0o7777)))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((target / "tool.wav").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((target / "open").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, InputError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_of(*TREE.items()))

    def interrupted():
        with unpacked([archive], tmp_path / "goal") as tree:
            assert bytes_of(tree)
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
        assert bytes_of(tree) == {"a/1.wav": b"1", "a/2.wav": b"2"}
    with (
        pytest.raises(ArchiveError, match="exists already, perhaps with other"),
        unpacked([one, one], tmp_path / "goal"),
    ):
        pass
