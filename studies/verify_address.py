"""Verify a store or cache in an object store, against its manifests."""

from __future__ import annotations

from antigram.cache.layer import FORMAT as GRAMS
from antigram.cache.layer import VERSION as CACHE_VERSION
from antigram.pipeline.errors import StoredDataError
from antigram.pipeline.features.store import FORMAT as FEATURES
from antigram.pipeline.features.store import VERSION as STORE_VERSION
from antigram.pipeline.storage.manifest import DOCUMENT, Problem, inner_groups
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import read_root
from antigram.pipeline.storage.verification import verify_group

__all__ = ["verify_address"]


def verify_address(address: str, sample: int | None = None) -> tuple[str, list[Problem]]:
    """Read every object of a store or cache, and check it by the manifests.

    What needs several files, such as whether a cache fits its store, is left to `verify` of a local
    copy.

    Args:
        address: such as ``s3://bucket/features/NAME.zarr``.
        sample: as for `verify`.

    Returns:
        ``store`` or ``cache``, and the problems.

    Raises:
        InputError: there is no store or cache, or the object store cannot be reached.
    """
    group = open_backend(address)
    inner = inner_groups(group)
    form, newest = (GRAMS, CACHE_VERSION) if inner else (FEATURES, STORE_VERSION)
    problems: list[Problem] = []
    try:
        read_root(group, form, newest, "Gram cache" if inner else "feature store")
    except StoredDataError as error:
        root = group.where(DOCUMENT)
        problems.append(Problem(root, str(error).removeprefix(f"{root}: ")))
    for part in (group, *(group.below(name) for name in inner)):
        problems += verify_group(part, sample=sample)
    return "cache" if inner else "store", problems
