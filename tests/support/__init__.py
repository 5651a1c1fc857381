"""What tests make: recordings, corpora, stores, networks, runs, servers, shells."""

import pkgutil

import pytest

# What is asserted in these modules is shown as in a test.
pytest.register_assert_rewrite(
    *(f"{__name__}.{one.name}" for one in pkgutil.iter_modules(__path__))
)
