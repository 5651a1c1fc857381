"""An S3 server of this machine, for tests; it needs obstore and moto."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from antigram.pipeline.storage.objects import Objects
from tests.support.files import bytes_of

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
_SIGNED = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"


@contextmanager
def served(bucket: str = "bucket") -> Iterator[str]:
    """Run a server with an empty bucket, to which the environment leads; yield its URL."""
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
                patch.setenv(name, value)
            request = urllib.request.Request(
                f"{url}/{bucket}", method="PUT", headers={"Authorization": _SIGNED}
            )
            urllib.request.urlopen(request, timeout=60).close()
            yield url
    finally:
        server.stop()


def upload(folder: Path, address: str) -> Objects:
    """Put all files of a folder below an address."""
    objects = Objects.at(address)
    for key, raw in bytes_of(folder).items():
        assert objects.put_new(key, raw)
    return objects
