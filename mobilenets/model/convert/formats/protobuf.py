"""Protocol buffers as they are on the wire: a message's fields by number. Each reader knows what its fields are.

Nothing here trusts the bytes: whatever is wrong with them raises `ValueError` or `IndexError`.
"""

from __future__ import annotations

Message = dict[int, list[int | bytes]]

MOST = 1_000_000  # fields of one message: each takes two bytes of a file, and a hundred of memory


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer, and where the next begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer has no end")


def varints(data: bytes) -> list[int]:
    """The integers of a packed field."""
    out, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        out.append(value)
    return out


def fields(data: bytes, most: int = MOST) -> Message:
    """A message's fields by number, those that repeat in order; a field of fixed size as an integer."""
    found: Message = {}
    at = count = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
            value, at = int.from_bytes(data[at : at + length], "little"), at + length
        else:
            raise ValueError(f"wire type {tag & 7}")
        if at > len(data):
            raise ValueError("a field reaches past its message's end")
        count += 1
        if count > most:
            raise ValueError(f"a message of more than {most:,} fields")
        found.setdefault(tag >> 3, []).append(value)
    return found


def as_int(message: Message, field: int) -> int:
    """The integer of a field; 0 where there is none."""
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} isn't a number")
    return value


def as_bytes(message: Message, field: int) -> bytes:
    """The bytes of a field, text or a message; none where there is none."""
    value = message.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {field} isn't a message")
    return value


def messages(message: Message, field: int) -> list[bytes]:
    """All of a field that repeats."""
    found = message.get(field, [])
    out = [value for value in found if isinstance(value, bytes)]
    if len(out) < len(found):
        raise ValueError(f"field {field} isn't a message")
    return out
