"""Files whose weights are stored as what they are, mostly zeros or few values: smaller, and the same numbers."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from small import changed, few_values, mostly_zeros, smooth_images

from mobilenets.arch import zoo
from mobilenets.arch.graph import Output
from mobilenets.arch.spec import scale
from mobilenets.deploy import engines
from mobilenets.deploy.engines import native, native_library
from mobilenets.deploy.writers.native import native_model
from mobilenets.deploy.writers.native_file import CODED, HEADER, PIECE, PREFIX, SPARSE, TABLE, TABLES, VERSION
from mobilenets.deploy.writers.native_plan import UNIT
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.tasks.looking import last_map

pytestmark = [
    pytest.mark.usefixtures("ours"),
    pytest.mark.skipif(not native_library.built(), reason="the native engine isn't built here"),
]


def version(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 4)[0])


def pieces(data: bytes) -> list[tuple[int, ...]]:
    head = HEADER.unpack_from(data, PREFIX)
    return [PIECE.unpack_from(data, head[9] * UNIT + i * PIECE.size) for i in range(head[14])]


def answers(data: bytes, folder: Path, images: np.ndarray, threads: int = 1, isa: str | None = None) -> engines.Outputs:
    (folder / "m.mnet").write_bytes(data)
    return native.NativeEngine(folder / "m.mnet", threads, isa)(images)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("how", ["zeros", "2", "3", "15", "30", "60"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", ["v1", "v3-small", "v4-conv-s"])
def test_a_coded_file_computes_the_same(name: str, precision: str, how: str, tmp_path: Path) -> None:
    arch = scale(zoo.network(name), 0.5, 64, 10)
    change = mostly_zeros if how == "zeros" else lambda w: few_values(w, int(how))
    bundle = changed(random_bundle(arch, precision), change)  # type: ignore[arg-type]
    plain, coded = native_model(bundle), native_model(bundle, coded=True)
    assert (version(plain), version(coded)) == (VERSION, CODED)
    assert len(coded) < 0.9 * len(plain)
    ways = {p[0] for p in pieces(coded)}
    assert SPARSE in ways if how == "zeros" else ways & {TABLE, TABLES}
    images = smooth_images(3, 64)
    expected = answers(plain, tmp_path, images)
    for threads, isa in ((1, None), (2, None), (1, "scalar")):
        got = answers(coded, tmp_path, images, threads, isa)
        if isa is None or precision == "int8":
            assert all((got[k] == v).all() for k, v in expected.items())
        else:
            assert all(np.allclose(got[k], v, 1e-5, 1e-5) for k, v in expected.items())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_weights_of_no_such_kind_lie_in_the_file_as_the_engine_reads_them(precision: str, tmp_path: Path) -> None:
    bundle = random_bundle(scale(zoo.network("v1"), 0.25, 64, 10), precision)  # type: ignore[arg-type]
    native.write(bundle, tmp_path / "m.mnet", None)
    assert (tmp_path / "m.mnet").read_bytes() == native_model(bundle)


def test_a_classifier_that_shows_where_it_looks_lies_as_it_is() -> None:
    bundle = changed(random_bundle(scale(zoo.network("v1"), 0.5, 64, 10)), mostly_zeros)
    layer, shown = last_map(bundle.card) or ("", "")
    outputs = (*bundle.card.head.outputs, Output("map", shown))
    head = dataclasses.replace(bundle.card.head, outputs=outputs)
    weights = {p[2] for p in pieces(native_model(bundle, coded=True))}  # of their rows
    shows = {p[2] for p in pieces(native_model(Bundle(bundle.card.replace(head=head), bundle.tensors), coded=True))}
    assert weights - shows == {bundle.card.graph.op(layer).cout}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("word", range(8))
@pytest.mark.parametrize("value", [0, 3, 255, 2**24 + 1, 2**32 - 1])
def test_pieces_that_lie(word: int, value: int, tmp_path: Path) -> None:
    from test_native_faults import sealed

    bundle = changed(random_bundle(scale(zoo.network("v1"), 0.25, 64, 10), "int8"), mostly_zeros)
    data = bytearray(native_model(bundle, coded=True))
    at = HEADER.unpack_from(data, PREFIX)[9] * UNIT + PIECE.size + 4 * word
    assert struct.unpack_from("<I", data, at - 4 * word)[0] == SPARSE
    struct.pack_into("<I", data, at, value)
    (tmp_path / "m.mnet").write_bytes(sealed(bytes(data)))
    with pytest.raises(UserError, match=r"m\.mnet: damaged: the pieces of its weights$"):
        engines.load(tmp_path / "m.mnet")


@pytest.mark.parametrize(("word", "said"), [(10, "pieces"), (14, "pieces"), (15, "outside the file")])
def test_a_header_that_says_more_than_there_is(word: int, said: str, tmp_path: Path) -> None:
    from test_native_faults import sealed

    bundle = changed(random_bundle(scale(zoo.network("v1"), 0.25, 64, 10)), mostly_zeros)
    data = bytearray(native_model(bundle, coded=True))
    at = PREFIX + 4 * word
    struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] * 2)
    (tmp_path / "m.mnet").write_bytes(sealed(bytes(data)))
    with pytest.raises(UserError, match=said):
        engines.load(tmp_path / "m.mnet")
