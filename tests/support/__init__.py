"""Test helpers that make recordings, corpora, stores, networks, runs, servers and shells."""

import pkgutil

import pytest

# pytest shows the values of failed assertions in these modules, as in tests.
pytest.register_assert_rewrite(
    *(f"{__name__}.{one.name}" for one in pkgutil.iter_modules(__path__))
)
