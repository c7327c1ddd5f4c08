"""Types of what came from a file, as annotations say them."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from mobilenets.arch.fields import check, is_text


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None = None


class Note(TypedDict, total=False):
    count: int


GOOD = [
    (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, str | None), ("b", Literal["a", "b"]),
    ([1, 2], tuple[int, ...]), ((1, "a"), tuple[int, str]), ((), list[str]), ({"a": [1.0]}, dict[str, list[float]]),
    ({"count": 3, "more": []}, Note), ({}, Note), (Point(1), Point), ([{}], Any),
]  # fmt: skip
WRONG = [
    (True, int), (True, float), (1.0, int), (1, bool), (1, str), (b"a", str), ("c", Literal["a", "b"]), (1, str | None),
    ("ab", tuple[str, ...]), ([1, "a"], list[int]), ((1,), tuple[int, int]), ({1: 2}, dict[str, int]),
    ({"count": "3"}, Note), ([], Note), ({"x": 1}, Point), (Point("1"), Point), ([Point(1, 2)], list[Point]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), GOOD)
def test_right_types(value, hint):
    check(value, hint, "field")


@pytest.mark.parametrize(("value", "hint"), WRONG)
def test_wrong_types_are_named(value, hint):
    with pytest.raises(TypeError, match=r"field.* is .*, not "):
        check(value, hint, "field")


@pytest.mark.parametrize(
    ("name", "text"), [("ä", True), ("a\u200db", True), ("a\x1bb", False), ("a\n", False), ("\ud800", False)]
)
def test_names_that_can_be_shown(name, text):
    assert is_text(name) == text
