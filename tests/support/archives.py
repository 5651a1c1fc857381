"""Make archives of folders, of members of every kind, and of headers that no publisher writes."""

import io
import stat
import tarfile
import zipfile

END = bytes(1024)
LONG = (
    "long/" + "/".join(f"{'x' * 60}{n}" for n in range(5)) + "/end.wav"
)  # longer than tar's limits of 100 and 255 characters
TREE = {
    "word/a.wav": b"RIFF" + bytes(range(256)) * 9,
    "word/empty.wav": b"",
    "word/exactly.wav": b"x" * 1024,  # a multiple of the block size: no padding
    "other/ä ö.wav": b"umlauts",
    LONG: b"deep",
    "list.txt": b"word/a.wav\n",
}


def tar_of(*members, mode="w:gz", **options):
    """Return a tar with ``(name, bytes)`` and TarInfos as members."""
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


def tar_gz(folder, top):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, top)
    return buffer.getvalue()


def zipped(folder, top):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, f"{top}/{path.relative_to(folder).as_posix()}")
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


def header_of(name, kind=tarfile.REGTYPE, size=0):
    """Return a header block with a correct checksum; ``size`` is a number or the 12-byte field."""
    header = bytearray(special(name, kind).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size if isinstance(size, bytes) else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def in_blocks(data):
    return data + bytes(-len(data) % 512)


def damaged(data, at=-100):
    broken = bytearray(data)
    broken[at] ^= 0xFF
    return bytes(broken)


def swapped(data, old, new):
    """Return the archive with all occurrences of a name replaced by a name of equal length."""
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


def in_pax(records):
    return header_of("p", tarfile.XHDTYPE, len(records)) + in_blocks(records)


FILE = header_of("a.wav")
