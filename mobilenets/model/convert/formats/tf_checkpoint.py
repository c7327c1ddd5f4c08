"""TensorFlow checkpoints, version 2: `X.index`, a table of what is where, beside `X.data-00000-of-00001`, the bytes.

The index is a LevelDB table: blocks of keys in order, each sharing a prefix with the one before it, then a block that
says where those are, then a footer. Its values are protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError
from mobilenets.model.convert.formats import Array, check, content, damaged, path_errors
from mobilenets.model.convert.formats.protobuf import as_bytes, as_int, fields, varint

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_DTYPES = {1: "<f4", 2: "<f8", 14: "bfloat16", 19: "<f2"}  # tensorflow/core/framework/types.proto: the float ones
_AVERAGED = "/ExponentialMovingAverage"
_OBJECT = "/.ATTRIBUTES/VARIABLE_VALUE"  # how tf.train.Checkpoint ends its names
_MAX_KEYS, _MAX_KEY = 65_536, 1_024  # a short entry can repeat a long key: together they bound the memory


def read(path: Path) -> dict[str, Array]:
    """Every float tensor as float32 under its TensorFlow name, {"MobilenetV1/Conv2d_0/weights": [kh, kw, cin, cout]}.

    `path` is the checkpoint's prefix or any of its files. Where a variable has a moving average, that is what is read.
    """
    prefix = Path(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", str(path)))
    index = Path(f"{prefix}.index")
    with path_errors(path):
        alone = path == prefix and path.is_file() and not index.is_file()
    if alone:
        raise UserError(f"{path}: not a version 2 checkpoint: there is no {index.name} beside it")
    table = content(index)
    try:
        entries = list(_entries(table))
        if not entries or entries[0][0]:
            raise ValueError("no header, so not a version 2 checkpoint")
        header = fields(entries[0][1])
        if as_int(header, 2):
            raise ValueError("a big-endian checkpoint")
        arrays = _tensors(entries[1:], prefix, as_int(header, 1))
    except (ValueError, IndexError, OverflowError) as e:
        raise damaged(index, "TensorFlow checkpoint", e) from e
    averages = {k.removesuffix(_AVERAGED): a for k, a in arrays.items() if k.endswith(_AVERAGED)}
    arrays = {k: a for k, a in arrays.items() if not k.endswith(_AVERAGED)} | averages
    if not arrays:
        raise UserError(f"{index}: a TensorFlow checkpoint, but without float tensors in it")
    return {k.removesuffix(_OBJECT): a for k, a in arrays.items()}


def _tensors(entries: list[tuple[bytes, bytes]], prefix: Path, shards: int) -> dict[str, Array]:
    left = {}  # bytes of a shard not yet claimed by a tensor
    arrays = {}
    for key, value in entries:
        entry = fields(value)
        name = key.decode()
        dtype = _DTYPES.get(as_int(entry, 1))
        if dtype is None:
            continue
        if 7 in entry:
            raise ValueError(f"{name} is split in slices")
        shape = [as_int(fields(d), 1) for d in fields(as_bytes(entry, 2)).get(2, []) if isinstance(d, bytes)]
        number, offset, size = as_int(entry, 3), as_int(entry, 4), as_int(entry, 5)
        if number >= shards:
            raise ValueError(f"{name} is in shard {number} of {shards}")
        shard = Path(f"{prefix}.data-{number:05d}-of-{shards:05d}")
        if shard not in left:
            left[shard] = check(shard)
        left[shard] -= size
        item = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        if len(shape) > 8 or math.prod(shape) * item != size:
            raise ValueError(f"{name} has {size} bytes, not {shape} of {item} each")
        if left[shard] < 0 or offset + size > check(shard):
            raise ValueError(f"{name} reaches past the end of {shard.name}")
        with path_errors(shard), shard.open("rb") as f:
            f.seek(offset)
            data = f.read(size)
        if 6 in entry:
            _verify(data, as_int(entry, 6), name)
        if dtype == "bfloat16":
            array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):
                array = np.frombuffer(data, dtype).astype(np.float32)
        arrays[name] = array.reshape(shape)
    return arrays


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value, in order."""
    if len(table) < 48 or not table.endswith(_MAGIC):
        raise ValueError("cut short, or not an index")
    footer = table[-48:-8]
    at = 0
    for _ in range(2):  # of the meta-index, which is empty
        _, at = varint(footer, at)
    end = keys = 0
    for _, handle in _block(table, *_handle(footer[at:])):
        offset, size = _handle(handle)
        if offset < end:
            raise ValueError("its blocks overlap")
        end = offset + size
        for entry in _block(table, offset, size):
            keys += 1
            if keys > _MAX_KEYS:
                raise ValueError(f"more than {_MAX_KEYS:,} names")
            yield entry


def _handle(data: bytes) -> tuple[int, int]:
    offset, at = varint(data, 0)
    return offset, varint(data, at)[0]


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 5 > len(table) or size < 4:
        raise ValueError("a block reaches past its end")
    if table[offset + size]:
        raise ValueError("its index is compressed with snappy; write it with TensorFlow 2's tf.train.Checkpoint")
    _verify(
        table[offset : offset + size + 1], int.from_bytes(table[offset + size + 1 : offset + size + 5], "little"), ""
    )
    block = table[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or shared + fresh > _MAX_KEY or at + fresh + length > end:
            raise ValueError("an entry of its index reaches past its end")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _verify(data: bytes, masked: int, name: str) -> None:
    """Compare with a checksum as it is stored: rotated, and a constant added."""
    crc = crc32c(data)
    if ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF != masked:
        raise ValueError(f"the checksum of {name or 'its index'} doesn't match")


@cache
def _table() -> npt.NDArray[np.uint32]:
    c: npt.NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        c = ((c >> 1) ^ (c & 1) * np.uint32(0x82F63B78)).astype(np.uint32)
    return c


def crc32c(data: bytes) -> int:
    """CRC-32C. It is linear, so the data is cut in rows, all of them go through the table together, and the remainders
    are joined by what a row's length of zeros does to each of the 32 bits: 30 ms for 4 MB.
    """
    if len(data) < 4:
        data, head = b"", data
        crc = 0xFFFFFFFF
        for byte in head:
            crc = int(_table()[(crc ^ byte) & 255]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    width = max(8, math.isqrt(len(data)))
    count = -(-len(data) // width)
    rows = np.zeros((count + 32, width), np.uint8)
    flat = rows.reshape(-1)[count * width - len(data) : count * width]  # zeros in front change nothing
    flat[:] = np.frombuffer(data, np.uint8)
    flat[:4] ^= 255  # the same as starting from all ones
    c = np.zeros(count + 32, np.uint32)
    c[count:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        c = _table()[(c ^ column) & 255] ^ (c >> 8)
    remainders = c.tolist()
    bits = remainders[count:]
    crc = 0
    for remainder in remainders[:count]:
        shifted = remainder
        for i in range(crc.bit_length()):
            if crc >> i & 1:
                shifted ^= bits[i]
        crc = shifted
    return int(crc) ^ 0xFFFFFFFF
