"""Damaged files, thousands of them: made from good ones by a seed, and what reading them may do."""

import contextlib
import copy
import time
from pathlib import Path

import numpy as np

from mobilenets.errors import UserError

MAX_S, MAX_MB = 10, 96
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    1 << 20,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    2**63 - 1,
    2**64 - 1,
)


def mutated(data, rng):
    """One to four changes: flipped bits, bytes, inflated lengths, cuts, insertions, removals, moved pieces."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        # where structures are: half of the changes near one of the ends
        at = int(rng.integers(len(out))) if rng.random() < 0.5 else int(rng.integers(min(len(out), 256)))
        at = len(out) - 1 - at if rng.random() < 0.25 else at
        match rng.integers(8):
            case 0:
                out[at] ^= 1 << rng.integers(8)
            case 1:
                out[at] = rng.integers(256)
            case 2 | 3:
                width = int(rng.choice([1, 2, 4, 8]))
                at -= at % width if rng.random() < 0.7 else 0
                value = int(rng.choice(INTERESTING, 1)[0] if rng.random() < 0.7 else len(data) * rng.integers(1, 9))
                out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
            case 4:
                del out[at:]
            case 5:
                out[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 6:
                del out[at : at + int(rng.integers(1, 64))]
            case 7:
                source = int(rng.integers(len(out)))
                piece = out[source : source + int(rng.integers(1, 64))]
                out[at : at + len(piece)] = piece
    return bytes(out)


def memory(key):
    """VmRSS or VmHWM of this process, MB; nan where the system doesn't say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def outcome(read, path, limit=MAX_S):
    """What reading did: "read" or "refused"; anything else is a failure of the test."""
    started = time.monotonic()
    try:
        read(path)
        line = None
    except UserError as e:
        line = str(e)
    assert time.monotonic() - started < limit
    if line is None:
        return "read"
    assert "\n" not in line
    assert line.startswith(str(path).rsplit(".", 1)[0])
    assert len(line) < len(str(path)) + 3000  # all known names, perhaps
    return "refused"


def fuzz(read, data, path, count, seed, limit=MAX_MB, change=mutated):
    """How many of `count` mutations of `data` were read, and how many refused, with `limit` MB of memory at most."""
    rng = np.random.default_rng(seed)
    done = {"read": 0, "refused": 0}
    for i in range(count):
        path.write_bytes(change(data, rng))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = memory("VmRSS")
        try:
            done[outcome(read, path)] += 1
        except BaseException as e:
            e.add_note(f"case {i} of seed {seed}")
            raise
        assert not memory("VmHWM") - before > limit, f"case {i} of seed {seed}"
    assert done["refused"] > count / 10, done
    return done


# What stands in a JSON file in the place of what belongs there.
STRANGE = (
    None, True, -1, 0, 1, 3.5, 1e308, float("nan"), 2**31, 2**64, 10**30, "", "x", "\ud800", "\x1b[31m", "../../x", [],
    {}, [[]], {"": None}, [0] * 1000, ["a", 1, None], {"name": 3},
)  # fmt: skip


def other_value(value, rng):
    """A JSON value with one of its parts, at any depth, another, gone, or there under another name."""
    value = copy.deepcopy(value)
    at = value
    while True:
        keys = [*at] if isinstance(at, dict) else range(len(at))
        if not len(keys):
            return value
        key = keys[int(rng.integers(len(keys)))]
        inside = at[key]
        if isinstance(inside, dict | list) and inside and rng.random() < 0.8:
            at = inside
            continue
        match rng.integers(5):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[f"{key}?"] = at.pop(key)
            case _:
                at[key] = copy.deepcopy(STRANGE[int(rng.integers(len(STRANGE)))])
        return value
