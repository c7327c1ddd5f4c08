"""`predict` and its model from Python: answers in order, images of every kind, memory and time."""

import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from predicted import expected, same

import mobilenets
from mobilenets.arch import zoo
from mobilenets.deploy import engines, predict
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle

# ---- from Python ---------------------------------------------------------------------------------------------------


def test_order_is_kept(model, photos):
    paths = sorted(photos.rglob("*.png"))
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    got = mobilenets.load(model).predict(paths)
    assert [p.image for p in got] == [str(p) for p in paths]
    same(got, expected(model, paths))
    assert len({p.top for p in got}) > 20  # the images do get different answers


@pytest.mark.parametrize("top", [1, 3, 10, 99])
def test_top(model, photos, top):
    paths = sorted(photos.rglob("*.png"))[:3]
    got = mobilenets.load(model).predict(paths, top=top)
    same(got, expected(model, paths, min(top, 10)))
    for p in got:
        values = [v for _, v in p.top]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-4) or top < 10


def test_paths_pil_images_and_arrays_are_alike(model, photos):
    paths = sorted(photos.rglob("*.png"))[:4]
    m = mobilenets.load(str(model))
    answers = expected(model, paths)
    for images in (
        paths,
        [str(p) for p in paths],
        [Image.open(p) for p in paths],
        [np.asarray(Image.open(p)) for p in paths],
        [Image.open(p).convert("RGBA") for p in paths],
    ):
        same(m.predict(images), answers)
    got = m.predict([Image.open(paths[0]), paths[1], np.asarray(Image.open(paths[2]))])
    assert [p.image for p in got] == ["image 0", str(paths[1]), "image 2"]


def test_a_pil_images_16_bits_are_read_as_a_files_are(model, tmp_path):
    wide = Image.fromarray(np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16))
    wide.save(tmp_path / "w.png")
    m = mobilenets.load(model)
    same(m.predict([wide]), [m.predict([tmp_path / "w.png"])[0].top])


def test_one_in_one_out(model, photos):
    """One image gives its prediction, by whatever it is given; several give a list, of one too."""
    path = sorted(photos.rglob("*.png"))[0]
    m, pixels, data = mobilenets.load(model), np.asarray(Image.open(path)), path.read_bytes()
    answers = expected(model, [path])
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with path.open("rb") as opened:
        one = [
            m.predict(x)
            for x in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), opened,
                      Image.open(path), pixels, pixels / 255, (pixels / 255).astype(np.float32), tensor,
                      tensor.double() / 255)
        ]  # fmt: skip
    same(one, answers * len(one))
    assert [p.image for p in one[:3]] == [str(path), str(path), "image 0"]
    assert one[6].image == str(path)
    for several in ([path], (path,), (p for p in [path]), {path}, pixels[None], tensor[None], np.array([str(path)])):
        same(m.predict(several), answers)


def test_a_folder_a_zip_and_batches_among_others(model, photos, tmp_path):
    paths = sorted(photos.rglob("*.png"))
    m = mobilenets.load(model)
    zipped = tmp_path / "p.zip"
    with zipfile.ZipFile(zipped, "w") as z:
        for p in paths[:3]:
            z.write(p, p.name)
    batch = np.stack([np.asarray(Image.open(p)) for p in paths[:4]])
    answers = expected(model, paths)
    for folder in (photos, str(photos)):
        same(m.predict(folder), answers)
    same(m.predict(zipped), answers[:3])
    same(m.predict(batch), answers[:4])
    same(m.predict(torch.from_numpy(batch).permute(0, 3, 1, 2)), answers[:4])
    same(m.predict([paths[9], zipped, batch, photos]), [answers[9], *answers[:3], *answers[:4], *answers])


def test_grey_and_transparent_arrays_are_as_files_are(model, photos, tmp_path):
    path = sorted(photos.rglob("*.png"))[0]
    m = mobilenets.load(model)
    for mode, channels in (("L", 1), ("RGBA", 4)):
        image = Image.open(path).convert(mode)
        image.save(tmp_path / "x.png")
        values = np.asarray(image)
        same(
            [m.predict(values), m.predict(values.reshape(40, 40, channels))], expected(model, [tmp_path / "x.png"] * 2)
        )
        tensor = torch.from_numpy(values.reshape(40, 40, channels).copy()).permute(2, 0, 1)
        same([m.predict(tensor)], expected(model, [tmp_path / "x.png"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got dict"),
        ({"a.png": 1}, "got dict"),
        (None, "got NoneType"),
        (7, "got int"),
        (np.float32(7), "got float32"),
        ([7], "got int for an image"),
        ([None], "got NoneType for an image"),
        ([[1, 2]], "got list for an image"),
        (np.zeros((3, 9, 8), np.uint8), "[H, W, C], not [3, 9, 8]: turn it: numpy.moveaxis"),
        (np.zeros((9, 8, 2), np.uint8), "it has 1, 3 or 4 channels"),
        (np.zeros(9, np.uint8), "[H, W, C] or [H, W], not [9]"),
        (np.zeros((2, 2, 9, 8, 3), np.uint8), "[H, W, C] or [H, W], not [2, 2, 9, 8, 3]"),
        (np.zeros((0, 8, 3), np.uint8), "has no pixels"),
        (np.zeros((9, 8, 3), np.int64), "uint8, or floats from 0 to 1, not int64"),
        (np.zeros((9, 8, 3), bool), "uint8, or floats from 0 to 1, not bool"),
        (np.full((9, 8, 3), 200.0), "go from 0 to 1, not from 200 to 200: give uint8"),
        (np.full((9, 8, 3), np.nan), "go from 0 to 1, not from nan to nan"),
        (torch.full((3, 9, 8), -1.5), "go from 0 to 1, not from -1.5 to -1.5"),
        (torch.zeros(9, 8, 3), "[C, H, W], not [9, 8, 3]: turn it: x.movedim(-1, -3)"),
        ("gone.png", "gone.png: no such file or folder"),
        ("https://example.org/a.png", "https://example.org/a.png: addresses aren't read here"),
        (["https://example.org/a.png"], "https://example.org/a.png: addresses aren't read here"),
        (io.StringIO("text"), "opened as text; open it with mode 'rb'"),
    ],
)
def test_what_is_no_image_is_refused(model, given, message):
    with pytest.raises(UserError) as e:
        mobilenets.load(model).predict(given)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_top_is_judged(model, photos):
    m = mobilenets.load(model)
    for top in (0, -1):
        with pytest.raises(UserError, match="top must be 1 or more"):
            m.predict(photos, top=top)
    with pytest.raises(UserError, match="threads must be 1 or more"):
        mobilenets.load(model, threads=0)


def test_predict_as_a_function(model, photos, tmp_path):
    paths = sorted(photos.rglob("*.png"))
    answers = expected(model, paths)
    same(mobilenets.predict(model, photos), answers)
    same(mobilenets.predict(str(model), paths[0], np.asarray(Image.open(paths[1]))), answers[:2])
    made = mobilenets.predict(model, photos, out=str(tmp_path / "p.jsonl"))
    assert (made.images, made.skipped) == (30, ())
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["top"][0]["label"] for line in lines] == [a[0][0] for a in answers]
    with pytest.raises(UserError, match="name at least one image"):
        mobilenets.predict(model)
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        mobilenets.predict(model, "gone.png")


def test_no_images_no_answers(model):
    assert mobilenets.load(model).predict([]) == []


def test_a_damaged_image_is_told_and_the_others_are_answered(model, photos):
    paths = sorted(photos.rglob("*.png"))
    bad = {3, 4, 11, 29}
    for i in bad:
        paths[i].write_bytes(paths[i].read_bytes()[:50])
    paths[11].unlink()
    truncated = photos / "cut.bmp"
    Image.new("RGB", (40, 40)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:900])
    got = mobilenets.load(model).predict(paths)
    assert {i for i, p in enumerate(got) if p.error} == bad
    assert all(str(paths[i]) in got[i].error and not got[i].top for i in bad)
    assert "no such file" in got[11].error
    with Image.open(truncated) as image:
        (lazy,) = mobilenets.load(model).predict([image])
    assert "damaged image" in lazy.error
    good = [i for i in range(30) if i not in bad]
    same([got[i] for i in good], expected(model, [paths[i] for i in good]))


def test_bundle_run_and_file_agree(model, make_bundle, photos, tmp_path):
    make_bundle("v1").save(tmp_path / "run" / "float")
    paths = sorted(photos.rglob("*.png"))[:3]
    answers = expected(model, paths)
    for where in (tmp_path / "run" / "float", tmp_path / "run"):
        for p, answer in zip(mobilenets.load(where).predict(paths), answers, strict=True):
            assert [c for c, _ in p.top] == [c for c, _ in answer]


@pytest.mark.slow
def test_an_openvino_folder_is_a_file_like_any_other(model, make_bundle, photos, command, tmp_path):
    """Its batches here: eights, and what a damaged image and the end leave of them."""
    pytest.importorskip("openvino")
    folder = tmp_path / "model.openvino"
    engines.module("openvino").write(make_bundle("v1"), folder, None)
    paths = sorted(photos.rglob("*.png"))
    paths[9].write_text("no image")
    got = mobilenets.load(folder).predict(paths)
    assert [i for i, p in enumerate(got) if p.error] == [9]
    for p, q in zip(got, mobilenets.load(model).predict(paths), strict=True):
        assert [c for c, _ in p.top] == [c for c, _ in q.top]
        np.testing.assert_allclose([v for _, v in p.top], [v for _, v in q.top], atol=1e-4)
    assert len(command("predict", folder, photos / "b", "--json").out.splitlines()) == 10


def test_a_pil_image_is_turned_as_its_file_is(model, photos, tmp_path):
    image = Image.open(photos / "a" / "000.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    m = mobilenets.load(model)
    (a,) = m.predict([tmp_path / "turned.png"])
    (b,) = m.predict([Image.open(tmp_path / "turned.png")])
    assert a.top == b.top != m.predict([image])[0].top


def test_what_isnt_an_images_fault_is_raised(model, photos, monkeypatch):
    m = mobilenets.load(model)

    def broken(*_args):
        raise MemoryError

    monkeypatch.setattr(type(m.engine), "__call__", broken)
    with pytest.raises(MemoryError):
        m.predict(sorted(photos.rglob("*.png")))


# ---- memory and time -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_memory_does_not_grow_with_the_number_of_images(model, tmp_path, kind):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    jpegs = []
    for c in coarse:
        f = io.BytesIO()
        Image.fromarray(c).resize((200, 150), Image.Resampling.BICUBIC).save(f, "JPEG")
        jpegs.append(f.getvalue())

    def peak(count):
        where = tmp_path / f"{count}"
        if kind == "zip":
            where = where.with_suffix(".zip")
            with zipfile.ZipFile(where, "w") as z:
                for i in range(count):
                    z.writestr(f"{i:05d}.jpg", jpegs[i % 20])
        else:
            where.mkdir()
            for i in range(count):
                (where / f"{i:05d}.jpg").write_bytes(jpegs[i % 20])
        code = f"""
import contextlib, os, sys
from mobilenets import cli
with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
    code = cli.run(["predict", {str(model)!r}, {str(where)!r}, "--json"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
        return min(
            int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        )

    few, many = peak(100), peak(10_000)
    assert many < 1.1 * few


@pytest.mark.slow
def test_no_slower_than_the_engine_and_the_decoding_shared_by_the_cores(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(400):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i:03d}.jpg")
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(paths[-1])
    bundle = random_bundle(zoo.arch("v1", 0.5, 128, 10), "int8")
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_graph.onnx_model(bundle))
    m = mobilenets.load(file)
    cores = len(os.sched_getaffinity(0))
    pixels = np.stack([m.card.preprocess.read(p) for p in paths])

    def seconds(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def engine_alone():
        for i in range(0, len(paths), predict.BATCH):
            m.engine(pixels[i : i + predict.BATCH])

    def decode():
        for p in paths:
            m.card.preprocess.read(p)

    ratios = []
    for _ in range(7):  # in turn, so that a busy moment falls on all alike
        bound = seconds(engine_alone) + seconds(decode) / cores
        ratios.append(seconds(lambda: m.predict(paths)) / bound)
    assert np.median(ratios) < 1.1


def test_a_model_says_what_it_is():
    assert re.fullmatch(r"<v1-cifar 0\.25-32, float32, in (torch|onnxruntime)>", repr(predict.load("cifar10-v1-0.25")))
