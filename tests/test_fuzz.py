"""Damaged files of every kind: each is answered or is one line, soon, with little memory, and nothing is written.

A few hundred by default, 20,000 with `-m slow`; weights of other frameworks are in `model/test_formats_fuzz.py`.
"""

import contextlib
import hashlib
import io
import json
import shutil
import time
import zipfile

import numpy as np
import pytest
from damage import MAX_S, fuzz, memory, mutated, other_value
from PIL import Image

from mobilenets import files
from mobilenets.arch import zoo
from mobilenets.data.open import open_data
from mobilenets.deploy import engines
from mobilenets.deploy.engines import trial
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.inputs import sources
from mobilenets.deploy.latency import Table
from mobilenets.errors import UserError
from mobilenets.model.bundle import CARD, WEIGHTS, Bundle, random_bundle
from mobilenets.model.images import BadImage, open_rgb
from mobilenets.reports.card import bundle_table

pytestmark = pytest.mark.timeout(3600)

MAX_MB = 700  # with what is there already, under 1 GB
FEW = 12  # of each kind by default

few_or_many = pytest.mark.parametrize(
    "share", [pytest.param(0.0, id="few"), pytest.param(1.0, id="many", marks=pytest.mark.slow)]
)


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert [*here.iterdir()] == []


def count(share, many):
    return int(share * many) or FEW


def picture(kind, mode="RGB", **options):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind, **options)
    return out.getvalue()


PICTURES = {
    "png": ("PNG",), "rgba.png": ("PNG", "RGBA"), "palette.png": ("PNG", "P"), "grey16.png": ("PNG", "I;16"),
    "jpg": ("JPEG",), "cmyk.jpg": ("JPEG", "CMYK"), "webp": ("WEBP",), "gif": ("GIF", "P"), "bmp": ("BMP",),
    "tif": ("TIFF",), "jp2": ("JPEG2000",), "avif": ("AVIF",), "tga": ("TGA",), "ppm": ("PPM",),
}  # fmt: skip


@few_or_many
@pytest.mark.parametrize("name", PICTURES)
def test_images(name, share, tmp_path):
    data = picture(*PICTURES[name])
    if name == "tif":
        data = picture("TIFF", compression="tiff_deflate")
    path = tmp_path / f"a.{name}"
    rng, before = np.random.default_rng(1), memory("VmRSS")
    for _ in range(count(share, 800)):
        path.write_bytes(mutated(data, rng))
        started = time.monotonic()
        line = ""
        try:
            assert open_rgb(path, short_side=16).mode == "RGB"
        except BadImage as e:
            line = str(e)
        assert not line or line.startswith(str(path))
        assert time.monotonic() - started < MAX_S
    assert not memory("VmRSS") - before > 500  # nothing stays


@few_or_many
def test_zips(share, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for i, kind in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
            z.writestr(f"{'ab'[i % 2]}/{i}.png", picture("PNG"), kind)
    path = tmp_path / "a.zip"

    def read(where):
        data = open_data(str(where))
        for split in data.splits.values():
            for i in range(len(split)):
                with contextlib.suppress(BadImage):
                    split.rgb(i)
        assert [*sources([where])]

    fuzz(read, out.getvalue(), path, count(share, 2000), 2, MAX_MB)


def signed(card):
    body = {k: v for k, v in card.items() if k != "digest"}
    return {
        **body,
        "digest": hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
    }


@few_or_many
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_cards_whose_digests_are_right(share, tmp_path, precision):
    made = random_bundle(zoo.arch("v1", 0.25, 32, 10), precision)
    card = made.card.replace(
        data={"source": "x", "counts": {"train": 3}, "split_seed": 0, "val_fraction": 0.1},
        recipe={"command": "c", "teacher": {"name": "t", "digest": "d" * 64, "views": 3}, "epochs": 3, "best_epoch": 2},
    )
    Bundle(card, made.tensors).save(tmp_path / "b")
    good = (tmp_path / "b" / CARD).read_bytes()

    def change(data, rng):
        return json.dumps(signed(other_value(json.loads(data), rng))).encode()

    def read(where):
        bundle = Bundle.load(where.parent)
        assert bundle_table(bundle)
        TorchEngine(bundle, 1)(np.zeros((1, *bundle.card.preprocess.input_size, 3), np.uint8))

    fuzz(lambda where: named(read, where), good, tmp_path / "b" / CARD, count(share, 2000), 3, MAX_MB, change)


@few_or_many
def test_weights_whose_digests_are_right(share, tmp_path):
    random_bundle(zoo.arch("v1", 0.25, 32, 10)).save(tmp_path / "b")
    card = json.loads((tmp_path / "b" / CARD).read_bytes())

    def read(where):
        listed = {**card, "files": {WEIGHTS: files.sha256(where)}}
        (where.parent / CARD).write_text(json.dumps(signed(listed)))
        TorchEngine(Bundle.load(where.parent), 1)

    good = (tmp_path / "b" / WEIGHTS).read_bytes()

    def change(data, rng):  # its header alone: what comes after is numbers
        length = 8 + int.from_bytes(data[:8], "little")
        return mutated(data[:length], rng) + data[length:]

    fuzz(read, good, tmp_path / "b" / WEIGHTS, count(share, 1500), 4, MAX_MB, change)


@few_or_many
@pytest.mark.parametrize("part", ["index", "table", "shard"])
def test_shards(share, part, tmp_path, written):
    shutil.copytree(written.out, tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_bytes())
    names = {"index": "index.json", "table": "val.npz", "shard": index["splits"]["val"]["shards"][0]["file"]}
    path = tmp_path / "s" / names[part]

    def change(data, rng):
        return json.dumps(other_value(index, rng)).encode() if part == "index" else mutated(data, rng)

    def read(where):
        if part == "table":
            entry = index["splits"]["val"]["table"]
            entry |= {"bytes": where.stat().st_size, "sha256": files.sha256(where)}
            (where.parent / "index.json").write_text(json.dumps(index))
        split = open_data(str(where.parent)).split("val")
        for i in range(len(split)):
            try:
                split.rgb(i)
            except BadImage as e:
                damaged.append(e)

    damaged = []
    if part == "shard":
        rng = np.random.default_rng(5)
        good = path.read_bytes()
        for _ in range(count(share, 1000)):
            path.write_bytes(change(good, rng))
            read(path)
        assert damaged
    else:
        fuzz(lambda where: named(read, where), path.read_bytes(), path, count(share, 1500), 5, MAX_MB, change)


def named(read, where):
    """`read`, its error under the name of the file that was damaged: shards are called by their folder."""
    try:
        read(where)
    except UserError as e:
        line = str(e)
    else:
        return
    assert line.startswith(str(where.parent))
    raise UserError(f"{where}: {line.removeprefix(str(where.parent))}")


@few_or_many
def test_latency_tables(share, tmp_path):
    table = {
        "kind": "mobilenets latency table", "format": 1, "protocol": 2, "threads": 1, "precision": "int8", "cpu": "x",
        "versions": {"onnxruntime": "1"}, "rows": [["v1", 0.25, 128, 1.0]],
    }  # fmt: skip
    path = tmp_path / "t.json"
    rng = np.random.default_rng(6)
    for _ in range(count(share, 500)):
        path.write_text(json.dumps(other_value(table, rng)))
        with pytest.raises(UserError):
            Table.read(path)


NATIVE = [n for n in engines.installed() if engines.runtime(n).runs_here]


def part_of(path, engine):
    """The file to damage, of a folder one that isn't under a digest of the card's."""
    inside = {"openvino": "model.xml", "ncnn": "model.param", "tflm": "model.c", "c": "m.c"}
    return path / inside[engine] if engine in inside else path


@pytest.mark.slow
@pytest.mark.parametrize("engine", NATIVE)
def test_artifacts(engine, tmp_path):
    """Whatever ends or stops a runtime ends a child process alone."""
    path = tmp_path / f"m{engines.runtime(engine).suffix}"
    module = engines.module(engine)
    module.write(random_bundle(zoo.arch("v1", 0.25, 32, 10), "int8"), path, None)
    part = part_of(path, engine)
    good, rng = part.read_bytes(), np.random.default_rng(7)
    for _ in range(20 if engine in ("executorch", "torch") else 100):
        part.write_bytes(mutated(good, rng))
        if engine == "ncnn":
            card = json.loads((path / "mobilenets.json").read_text())
            (path / "mobilenets.json").write_text(json.dumps({**card, "model.param": files.sha256(part)}))
        line = ""
        try:
            trial.check(path, engine, module.version())
        except UserError as e:
            line = str(e)
        assert not line or line.startswith(str(path))
        assert "\n" not in line
