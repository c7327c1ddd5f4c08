"""One coded file for a bundle: nothing is lost, little is left to save, and damage is one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilenets.deploy import engines
from mobilenets.errors import UserError
from mobilenets.model import codes, entropy, mnz
from mobilenets.model.bundle import Bundle, find_bundle, is_bundle
from mobilenets.model.convert import starts

RNG = np.random.default_rng(0)


def skewed(bits: int, size: int) -> np.ndarray:
    return np.clip(np.rint(RNG.laplace(2 ** (bits - 1), 2**bits / 12, size)), 0, 2**bits - 1).astype(np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [0, 1, 7, 50_000])
def test_a_stream_comes_back(bits: int, size: int) -> None:
    symbols = skewed(bits, size)
    stream = entropy.pack(symbols)
    assert np.array_equal(entropy.unpack(stream, size), symbols)
    if size > 1000:
        least = entropy.entropy(symbols) / 8
        assert least <= len(stream) < 1.01 * least + entropy.BYTE
        assert entropy.entropy(symbols) <= entropy.huffman(symbols) < entropy.entropy(symbols) + size
        assert len(stream) < entropy.huffman(symbols) / 8 + entropy.BYTE


def test_one_symbol_takes_nothing_and_noise_no_more_than_it_is() -> None:
    assert len(entropy.pack(np.full(10**6, 77, np.uint8))) == 3
    noise = RNG.integers(0, 256, 10_000).astype(np.uint8)
    assert len(entropy.pack(noise)) == 3 + len(noise)


@pytest.mark.parametrize(
    "stream", [b"", b"\x01", b"\x07\x00\x00", b"\x01\x05\x01", b"\x01\x00\x09ab", b"\x00\x00\x00abc"]
)
def test_no_stream(stream: bytes) -> None:
    with pytest.raises(ValueError, match="stream"):
        entropy.unpack(stream, 5)


def test_streams_of_noise_are_an_error_or_other_symbols() -> None:
    good = entropy.pack(skewed(4, 5000))
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with contextlib.suppress(ValueError):
            assert len(entropy.unpack(bytes(bad), 5000)) == 5000


VALUES = {
    "whole": np.arange(-40, 60, dtype=np.float32) / 16,
    "wide": np.arange(-3000, 3000, 7, dtype=np.float32) * 2**-11,
    "plain": RNG.standard_normal(300).astype(np.float32),
    "half": RNG.standard_normal(300).astype(np.float16),
    "odd": np.array([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan, 1e-45, 3e38], np.float32),
    "far": np.array([1e300, 1e-300, 0], np.float64),
    "codes": RNG.integers(-128, 128, 999).astype(np.int8),
    "bias": RNG.integers(-(2**31), 2**31, 50).astype(np.int32),
    "long": np.array([2**62, -(2**63), 5], np.int64),
    "one": np.asarray(np.float32(0.7)),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_bit_for_bit(name: str) -> None:
    value = VALUES[name]
    form, parts = mnz._parts(value, 0)
    assert mnz.Form.of(json.loads(json.dumps(list(form.__dict__.values())))) == form
    assert tuple(len(p) for p in parts) == form.counts(value.size)
    back = mnz._values(form, parts, value.shape)
    assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize("bits", range(1, 9))
def test_cut_and_joined(bits: int) -> None:
    data = RNG.integers(0, 256, 101).astype(np.uint8)
    assert np.array_equal(codes.joined(codes.cut(data, bits), bits, 101), data)
    assert codes.cut(data, bits).max() < 2**bits


@pytest.fixture(scope="module")
def saved(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle("v1").encoded("int4").save(tmp_path_factory.mktemp("mnz") / "v1.mnz")


@pytest.fixture(scope="module")
def file(saved: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "v1.mnz"
    saved.save(path)
    return path


def test_a_bundle_in_one_file(saved: Bundle, file: Path, tmp_path: Path) -> None:
    loaded = Bundle.load(file)
    assert is_bundle(file)
    assert find_bundle(file) == file
    assert loaded.card.graph == saved.card.graph
    assert loaded.card.encodings == saved.card.encodings
    assert {k: v.tobytes() for k, v in loaded.tensors.items()} == {k: v.tobytes() for k, v in saved.tensors.items()}
    folder = loaded.save(tmp_path / "folder")
    assert file.stat().st_size < 0.9 * sum(f.stat().st_size for f in (tmp_path / "folder").iterdir())
    assert folder.save(tmp_path / "again.mnz").card.encodings == saved.card.encodings


def test_it_runs_where_a_bundle_does(file: Path, pixels: np.ndarray) -> None:
    assert engines.for_path(file) == "torch"
    said = engines.load(file)(pixels[:2])["probabilities"]
    assert np.array_equal(said, engines.module("torch").TorchEngine(Bundle.load(file), 1)(pixels[:2])["probabilities"])
    assert starts.opened(file).digest == Bundle.load(file).digest


@pytest.mark.parametrize("cut", [0, 3, 8, 40, 1000, -1])
def test_cut_anywhere(file: Path, tmp_path: Path, cut: int) -> None:
    bad = tmp_path / "bad.mnz"
    bad.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"bad\.mnz: (not a \.mnz file|altered or damaged)") as e:
        Bundle.load(bad)
    assert "\n" not in str(e.value)


def hostile(file: Path, change: Callable[[dict], None], out: Path) -> Path:
    """The file with another head, its digest made right."""
    data = file.read_bytes()
    length = mnz.SIZE.unpack_from(data, 4)[0]
    head = json.loads(zlib.decompress(data[8 : 8 + length]))
    change(head)
    text = zlib.compress(json.dumps(head).encode())
    whole = mnz.MAGIC + mnz.SIZE.pack(len(text)) + text + data[8 + length : -mnz.DIGEST]
    out.write_bytes(whole + hashlib.sha256(whole).digest())
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.pop("card"), "not readable"),
        (lambda h: h["card"].update(licence="mine"), "altered since it was written"),
        (lambda h: h["tensors"].pop(), "other tensors"),
        (lambda h: h["tensors"].__setitem__(0, ["<f4", "cut", 99, 0, 1]), "no known way"),
        (lambda h: h["tensors"].__setitem__(0, ["O", "planes", 0, 0, 1]), "no known way"),
        (lambda h: h["tensors"].__setitem__(0, ["<f4", "whole", 0, 10**9, 1]), "no known way"),
        (lambda h: h["tensors"].__setitem__(0, 7), "not readable"),
        (lambda h: h["tensors"].__setitem__(0, ["<f2", "whole", 1, 1000, 1]), "not readable.*overflow"),
        (lambda h: h["streams"].append(5), "other tensors"),
        (lambda h: h.update(streams=None), "not readable"),
        (lambda h: h["streams"].reverse(), "not readable|aren't those of its card"),
    ],
)
def test_a_head_that_lies(file: Path, tmp_path: Path, change: Callable[[dict], None], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Bundle.load(hostile(file, change, tmp_path / "bad.mnz"))


def test_a_small_file_takes_little_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnz, "EXPANDS", 1)
    with pytest.raises(UserError, match="more than can come of a file of its size"):
        Bundle.load(file)
    monkeypatch.setattr(mnz, "HEAD_MOST", 1000)
    with pytest.raises(UserError, match="cut off, or too large"):
        Bundle.load(file)


def test_symbols_of_one_bit_are_counted_as_the_bytes_they_are(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times as many as the tensors' bytes."""
    tensors = Bundle.load(file).tensors
    bits = sum(8 * t.size * 4 for t in tensors.values())
    one_bit = hostile(
        file, lambda h: h.update(tensors=[["<f4", "cut", 1, 0, 1] for _ in h["tensors"]]), tmp_path / "bad.mnz"
    )
    monkeypatch.setattr(mnz, "TENSORS_MOST", bits - 1)
    with pytest.raises(UserError, match=f"it would take {bits:,} bytes"):
        Bundle.load(one_bit)


def test_streams_of_other_symbols_are_noticed(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes()[: -mnz.DIGEST])
    data[-1000] ^= 1
    bad = tmp_path / "bad.mnz"
    bad.write_bytes(bytes(data) + hashlib.sha256(data).digest())
    with pytest.raises(UserError, match=r"aren't those of its card|not readable"):
        Bundle.load(bad)


def test_without_constriction(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'mobilenets\[compress\]'"):
        Bundle.load(file)


def test_what_is_no_bundle_is_not_replaced(saved: Bundle, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(__file__, tmp_path / "folder" / "text")
    with pytest.raises(UserError, match="isn't a bundle"):
        saved.save(tmp_path / "folder")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="isn't a bundle"):
        saved.save(tmp_path / "notes")
