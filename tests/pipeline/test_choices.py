"""The accepted values of settings: each list is written once and checked by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from antigram.pipeline.choices import Noise, check_choice, check_choices, choices_of
from antigram.pipeline.errors import InputError


@dataclass
class Settings:
    noise: Noise = "none"
    unset: Literal["a", "b"] | None = None
    text: str = ""
    number: int | None = None


def test_fields_with_a_literal_are_those_that_are_checked():
    assert choices_of(Settings) == {"noise": ("none", "low", "high"), "unset": ("a", "b", None)}
    check_choices(Settings(text="anything", number=3))
    check_choices(Settings(noise="high", unset="b"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"noise": "loud"}, "noise is 'loud'; wanted: none, low, high"),
        ({"noise": None}, "noise is None; wanted: none, low, high"),
        ({"noise": ["low"]}, r"noise is \['low'\]; wanted: none, low, high"),
        ({"unset": "c"}, "unset is 'c'; wanted: a, b$"),
        ({"unset": ""}, "unset is ''; wanted: a, b$"),
    ],
)
def test_other_values_are_refused_by_name(changed, says):
    with pytest.raises(InputError, match=says):
        check_choices(Settings(**changed))


def test_a_single_value_is_checked_against_a_list():
    check_choice("codec", "map", ("auto", "map"))
    with pytest.raises(InputError, match="codec is 'zip'; wanted: auto, map"):
        check_choice("codec", "zip", ("auto", "map"))
