"""Whether values that came from a file are of the types that a dataclass, or a TypedDict, says."""

from __future__ import annotations

import dataclasses
import functools
import types
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
_hints = functools.cache(get_type_hints)


def check(value: Any, hint: Any, what: str) -> None:
    """Raises TypeError, naming the field `what` or one inside it, where `value` isn't of the type `hint`.

    Known are texts, numbers, Literals, unions, tuples and lists (one for the other), dictionaries, dataclasses, and
    TypedDicts, of which those keys count that are there. True is no number, a whole number is a float too.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if dataclasses.is_dataclass(hint) or is_typeddict(hint):
        fields = value if isinstance(value, Mapping) and is_typeddict(hint) else getattr(value, "__dict__", None)
        if fields is None or (dataclasses.is_dataclass(hint) and not isinstance(value, hint)):  # type: ignore[arg-type]
            raise _wrong(value, hint, what)
        for name, inner in _hints(hint).items():
            if name in fields:
                check(fields[name], inner, f"{what}.{name}")
    elif origin in (Union, types.UnionType):
        if not any(_fits(value, one) for one in arguments):
            raise _wrong(value, hint, what)
    elif origin in (tuple, list):
        whole = origin is tuple and arguments[1:] != (...,) and len(arguments)
        if not isinstance(value, list | tuple) or (whole and len(value) != whole):
            raise _wrong(value, hint, what)
        for i, v in enumerate(value):
            check(v, arguments[i if whole else 0], f"{what}[{i}]")
    elif origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, hint, what)
        for k, v in value.items():
            check(k, arguments[0], f"a name in {what}")
            check(v, arguments[1], f"{what}.{k}")
    elif not (
        value in arguments if origin is Literal else
        type(value) in (int, float) if hint is float else
        type(value) is hint if hint in (int, bool) else isinstance(value, hint)
    ):  # fmt: skip
        raise _wrong(value, hint, what)


def _fits(value: Any, hint: Any) -> bool:
    try:
        check(value, hint, "")
    except TypeError:
        return False
    return True


def _wrong(value: Any, hint: Any, what: str) -> TypeError:
    wanted = WORDS.get(hint) or getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
    if get_origin(hint) is not None:
        wanted = str(hint).replace("typing.", "")
    return TypeError(f"{what} is {ascii(value)[:60]}, not {wanted}")


def is_text(value: str) -> bool:
    """Whether a name can be shown and written anywhere: no control characters, no halves of a character."""
    return value.isprintable() or not {"Cc", "Cs"} & {unicodedata.category(c) for c in value}
