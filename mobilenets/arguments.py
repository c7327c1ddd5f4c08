"""What public functions take, one signature for Python and the command line, and what is said of a wrong call."""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, overload

from mobilenets.errors import ArgumentError, UserError, needed_by, unknown

T = TypeVar("T", bound=Callable[..., Any])
Given = TypeVar("Given", str, int, float)

if TYPE_CHECKING:
    StrPath = str | Path
    DataSource = str | Path
else:  # what a command line's word becomes
    StrPath = Path
    DataSource = Annotated[str, os.PathLike]


@overload
def as_path(given: StrPath) -> Path: ...
@overload
def as_path(given: None) -> None: ...
@overload
def as_path(given: StrPath | None) -> Path | None: ...
def as_path(given: StrPath | None) -> Path | None:
    """What a parameter that takes a path was given, if anything."""
    return None if given is None else Path(given)


def several(given: Given | Sequence[Given]) -> tuple[Given, ...]:
    """What a parameter that takes one or several was given: `"a"`, `"a,b"`, `2` or `("a", "b")`."""
    if isinstance(given, str):
        return tuple(word.strip() for word in given.split(","))
    return tuple(given) if isinstance(given, Sequence) else (given,)


def seconds(given: str | float | None, name: str) -> float | None:
    """A time as people write it: "10m", "90s", "1h", "1h30m", or a number of seconds. Raises `UserError`."""
    if given is None:
        return None
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", str(given).strip())
    total = sum(unit * float(n) for n, unit in zip(parts.groups(), (3600, 60, 1), strict=True) if n) if parts else 0
    if not total > 0:
        raise UserError(f"{name} takes a time such as 10m, 90s or 1h, not {given!r}")
    return total


def share(given: str | float, name: str) -> float:
    """A share as people write it, above 0 and below 1: "50%", "0.5" or .5. Raises `UserError`."""
    text = str(given).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UserError(f"{name} takes a share such as 50% or 0.5, not {given!r}")
    return value


def checked(target: T) -> T:
    """A public function or class whose wrong calls are one line that says what is meant: an `ArgumentError`.

    For an argument that it doesn't have the nearest one is suggested; one that is missing, or of another type than its
    annotation's, is named. Values are the function's own to judge.
    """
    if isinstance(target, type):
        own: Any = target
        own.__init__ = _checked(own.__init__, target.__name__)
        return target
    return cast(T, _checked(target, target.__name__))


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)
    parameters = {n: p for n, p in signature.parameters.items() if n not in ("self", "cls")}
    known = [n for n, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]
    named = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    takes = ", ".join([*(n for n in parameters if n not in named), *(f"{n}=" for n in named)])

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for given in kwargs:
            if given not in known:
                raise ArgumentError(f"{name}: {unknown('argument', given, known)}")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            raise ArgumentError(f"{name}: {e}; it takes {takes}") from None
        for given, hint in _hints(function).items():
            value = bound.arguments.get(given, inspect.Parameter.empty)
            several = signature.parameters[given].kind is inspect.Parameter.VAR_POSITIONAL
            for one in () if value is inspect.Parameter.empty else value if several else (value,):
                if not _fits(one, hint):
                    raise ArgumentError(f"{name}: {_wrong(given, one, hint)}")
        with needed_by(name):
            return function(*args, **kwargs)

    return call


@functools.cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of the parameters, as far as their names are there when it runs."""
    inner = inspect.unwrap(function)
    hints = {}
    for name, written in inner.__annotations__.items():
        if name != "return":
            with contextlib.suppress(NameError):
                hints[name] = eval(written, inner.__globals__) if isinstance(written, str) else written
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, where that is one that options have; of others nothing is known."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, inside[0]) or any(isinstance(m, type) and isinstance(value, m) for m in inside[1:])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return value in inside
    if origin is tuple:
        each = value if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else (value,)
        return isinstance(value, str) or all(_fits(one, inside[0]) for one in each)
    if hint is None:
        return value is None
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | os.PathLike)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _wrong(given: str, value: Any, hint: Any) -> str:
    names = _names(hint)
    if names and isinstance(value, str):
        return str(unknown(given, value, names))
    text = repr(value)
    return f"{given} must be {_said(hint)}, not {text if len(text) <= 40 else f'a {type(value).__name__}'}"


def _names(hint: Any) -> tuple[str, ...]:
    """The names that a type allows, if it is a choice of names."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(name for one in typing.get_args(hint) for name in _names(one))


WORDS = {
    bool: "True or False", int: "a whole number", float: "a number", type(None): "None", str: "a text",
    Path: "a path (str or Path)",
}  # fmt: skip


def _said(hint: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        more = [] if os.PathLike in inside else [_said(m) for m in inside[1:] if isinstance(m, type)]
        return " or ".join([WORDS[Path] if os.PathLike in inside else _said(inside[0]), *more])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_said, inside))
    if origin is tuple:
        return f"{_said(inside[0])} or several"
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    return WORDS.get(hint) or f"a {hint.__name__}"
