"""A folder as the bytes of an archive."""

import io
import tarfile
import zipfile


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
