"""Predictions into files; features on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle
from mobilenets.tasks import features


@pytest.fixture(scope="module")
def folder(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and four images of which the second is damaged."""
    from PIL import Image
    from small import smooth_images

    root = tmp_path_factory.mktemp("answers")
    make_bundle("v1").save(root / "bundle")
    (root / "images").mkdir()
    for i, pixels in enumerate(smooth_images(4)):
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    (root / "images" / "1.png").write_bytes(b"no image")
    return root


def rows(folder: Path, bundle: Bundle) -> np.ndarray:
    """The features of the images that can be read."""
    engine = TorchEngine(bundle, 1)
    pixels = [bundle.card.preprocess.read(folder / "images" / f"{i}.png") for i in (0, 2, 3)]
    return engine(np.stack(pixels))["features"]


def test_npy_keeps_rows_and_images_together(folder: Path, command: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    ran = command("predict", folder / "bundle", folder / "images", "--task", "features", "--out", out)
    assert (ran.code, ran.err.count("damaged")) == (1, 1)
    got = np.load(out)
    expected = rows(folder, features.of_bundle(Bundle.load(folder / "bundle")))
    assert got.shape == (4, expected.shape[1])
    assert np.isnan(got[1]).all()
    np.testing.assert_allclose(got[[0, 2, 3]], expected, rtol=1e-5, atol=1e-6)


def test_a_damaged_image_that_comes_first(folder: Path, command: Callable[..., object], tmp_path: Path) -> None:
    out, tap = tmp_path / "f.npy", "blocks.3.depthwise"
    damaged, good = folder / "images" / "1.png", folder / "images" / "0.png"
    assert command("predict", folder / "bundle", damaged, good, "--tap", tap, "--out", out).code == 1
    got = np.load(out)
    assert got.shape == (2, *features.of_bundle(Bundle.load(folder / "bundle"), tap).card.outputs["features"])
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_lines_and_parquet_say_the_same(folder: Path, command: Callable[..., object], tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    for task in ("classify", "features"):
        for suffix in ("jsonl", "parquet"):
            line = (
                "predict",
                folder / "bundle",
                folder / "images",
                "--task",
                task,
                "--out",
                tmp_path / f"{task}.{suffix}",
            )
            assert command(*line).code == 1
        lines = [json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines()]
        table = pq.read_table(tmp_path / f"{task}.parquet").to_pylist()
        assert [r["image"] for r in table] == [line["image"] for line in lines]
        assert [r["error"] is None for r in table] == ["error" not in line for line in lines]
        if task == "classify":
            assert [r["label"] for r in table] == [line["top"][0]["label"] if "top" in line else None for line in lines]
        else:
            assert table[1]["features"] is None
            np.testing.assert_allclose(table[2]["features"], lines[2]["features"], rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_file_of_features(
    precision: str, folder: Path, command: Callable[..., object], tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    data = write_images(tmp_path / "data", {f"{s}/{c}": 12 for s in ("train", "val") for c in ("a", "b")})
    file = tmp_path / "f.onnx"
    made = command(
        "export", folder / "bundle", data, "--task", "features", "--precision", precision, "--out", file, "--json"
    ).json
    assert (made["task"], made["precision"]) == ("features", precision)
    assert "top1" not in made
    printed = command("predict", file, folder / "images" / "0.png", "--json")
    got = np.array(json.loads(printed.out)["features"])
    (expected, *_) = rows(folder, features.of_bundle(Bundle.load(folder / "bundle")))
    cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
    assert cosine > (0.9999 if precision == "float32" else 0.95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "feature"], "unknown task 'feature': did you mean 'features'?"),
        (["--tap", "blocks.99.x"], "unknown operation"),
        (["--task", "classify", "--tap", "pool"], "--tap is for features, not for classify"),
        (["--out", "f.csv"], "predictions go into .jsonl, .parquet, .npy files"),
        (["--out", "f.npy"], ".npy files hold features"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, folder: Path, command: Callable[..., object], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = command("predict", folder / "bundle", folder / "images" / "0.png", *arguments)
    assert message in ran.line
    assert not list(tmp_path.iterdir())


def test_a_classifiers_file_gives_no_features(folder: Path, command: Callable[..., object], tmp_path: Path) -> None:
    from mobilenets.deploy.writers.onnx import onnx_model

    file = tmp_path / "m.onnx"
    file.write_bytes(onnx_model(Bundle.load(folder / "bundle")))
    line = command("predict", file, folder / "images" / "0.png", "--task", "features").line
    assert "gives probabilities; export its bundle with --task features" in line
