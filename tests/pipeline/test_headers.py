"""Headers that several processes read."""

import pytest

from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.features import headers
from antigram.pipeline.features.listing import list_rows
from tests.support.stores import gsc_recipe


class LastFirst:
    """Workers in this process that are done with the last task first."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, tasks):
        for task in reversed(tasks):
            yield task, function(*task)


@pytest.fixture
def in_workers(monkeypatch):
    monkeypatch.setattr(headers, "_HEADERS_A_TASK", 5)
    monkeypatch.setattr(headers, "_WORTH_WORKERS_S", 0)
    monkeypatch.setattr(headers, "Workers", LastFirst)


def test_a_listing_does_not_depend_on_which_process_is_done_first(gsc_home, in_workers):
    recipe = gsc_recipe()
    several = list_rows(GSC, gsc_home, recipe, None, workers=2)
    assert list(several.sizes) == sorted(several.sizes)
    assert several == list_rows(GSC, gsc_home, recipe, None, workers=1)
