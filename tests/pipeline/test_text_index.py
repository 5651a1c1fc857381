from __future__ import annotations

import pytest

from antigram.pipeline.storage import text_index
from antigram.pipeline.storage.text_index import TextIndex, coded, numbers_of
from antigram.pipeline.storage.text_table import TextTable

TEXTS = ["d", "a", "", "naïve", "c", "b"]


@pytest.fixture(params=["own", "all alike", "two kinds"])
def hashing(request, monkeypatch) -> None:
    """Texts with the same hash, which are too rare to wait for."""
    other = {"all alike": lambda _: 7, "two kinds": lambda text: len(text) % 2}
    if request.param in other:
        monkeypatch.setattr(text_index, "hash", other[request.param], raising=False)


@pytest.mark.usefixtures("hashing")
def test_the_row_of_each_text_is_found_and_others_are_not():
    index = TextIndex(TextTable.of([TEXTS]))
    assert index.rows(TEXTS).tolist() == [0, 1, 2, 3, 4, 5]
    assert index.rows(["b", "x", "b", "", "naive"]).tolist() == [5, -1, 5, 2, -1]
    assert index.rows([]).tolist() == []
    assert index.repeated() is None


@pytest.mark.usefixtures("hashing")
def test_a_text_that_comes_twice_is_named_and_its_first_row_is_found():
    index = TextIndex([*TEXTS, "c", "e"])
    assert index.repeated() == "c"
    assert index.rows(["c", "e"]).tolist() == [4, 7]


def test_an_index_of_nothing_finds_nothing():
    assert TextIndex([]).rows(["a"]).tolist() == [-1]
    assert TextIndex([]).repeated() is None


@pytest.mark.usefixtures("hashing")
def test_equal_texts_have_one_number_wherever_they_are():
    texts = ["b", "b", "a", "c", "c", "c", "b", "", "a"]
    numbers = numbers_of(iter(texts), len(texts)).tolist()
    assert len(set(zip(texts, numbers, strict=True))) == len(set(texts)) == len(set(numbers))
    assert numbers_of([], 0).tolist() == []


def test_few_texts_are_numbered_as_they_come():
    numbers, names = coded(iter(["b", "a", "b", ""]), 4)
    assert (numbers.tolist(), names) == ([0, 1, 0, 2], ["b", "a", ""])
    assert coded([], 0)[1] == []
