"""Shared fixtures: small image folders and small networks that look trained. torch is imported only when it is used."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Server
from small import COLOURS, SMALL_SHARD, TINY, Ran, Run, colour_images, quantized, run_cli, smooth_images

from mobilenets import web
from mobilenets.arch import zoo
from mobilenets.arch.operations import Padding
from mobilenets.arch.spec import scale
from mobilenets.commands.shards import Sharded, shards
from mobilenets.deploy import bench, choose, latency, load
from mobilenets.deploy.engines import trial
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Pixels, Preprocess

# One thread for each of pytest's workers; idle OpenMP threads that spin are hundreds of times slower on small networks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Processes that tests start take the package as it was compiled for the first of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest.register_assert_rewrite("foreign_files", "damage", "layouts", "answers", "predicted")

SMALL_ALPHA = {"v1": 0.25}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a `sampled(n)` test's cases n run by default, spread over all of them; the others are slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for every in cases.values():
        mark = every[0].get_closest_marker("sampled")
        assert mark is not None
        count = mark.args[0]
        kept = {(2 * i + 1) * len(every) // (2 * count) for i in range(count)}
        for i, item in enumerate(every):
            if i not in kept and len(every) > count:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def plain_c() -> Iterator[None]:
    """C source is compiled for any processor: a tenth of the time that this one's own instructions take."""
    from mobilenets.deploy.engines import c

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "flags", list)
        yield


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """`write_images(root, {"train/cat": 5, "val/cat": 0})`: a folder of different PNGs for each; gives `root`."""

    def write(root: Path, counts: dict[str, int], side: int = 24) -> Path:
        for seed, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i, pixels in enumerate(smooth_images(count, side, seed) if count else ()):
                Image.fromarray(pixels).save(root / folder / f"{i:03d}.png")
        return root

    return write


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    """24 images, uint8 [24, 32, 32, 3]."""
    return smooth_images(24)


@functools.cache
def _bundle(
    name: str, padding: Padding, mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> Bundle:
    import torch

    from mobilenets.model.module import build

    arch = scale(zoo.network(name), SMALL_ALPHA.get(name, 0.35), 32, 10, padding=padding)
    preprocess = Preprocess(32, 0.9, mean, std)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build(arch)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)  # around 2, most of a ReLU6's input is in its linear part, so that,
                m.bias.normal_(2, 0.7)  # as in a trained network, rounding isn't amplified from layer to layer
                m.momentum = None  # the running statistics become the plain average over what is shown below
        for s in range(3):
            model.train()(torch.from_numpy(preprocess.normalize(smooth_images(32, seed=100 + s))))
        model.classifier.weight.normal_(0, 1.5 / arch.features**0.5)
        mean = model.eval().pooled(torch.from_numpy(preprocess.normalize(smooth_images(32, seed=100)))).mean(0)
        model.classifier.bias.normal_(0, 0.5).sub_(model.classifier.weight @ mean)  # so that no class always wins
    labels = tuple(f"class {i}" for i in range(10))
    card = classifier_card(arch, preprocess, labels, licence="Apache-2.0")
    return Bundle(card, {k: v.numpy() for k, v in model.state_dict().items()})


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """`make_bundle("v1")`: a float32 Bundle of V1 .25-32 (or V2 .35-32), 10 classes, its BatchNorm as if trained."""

    def make(
        name: str,
        padding: Padding = "symmetric",
        mean: tuple[float, float, float] = (128.0, 128.0, 128.0),
        std: tuple[float, float, float] = (128.0, 128.0, 128.0),
        seed: int = 0,
    ) -> Bundle:
        return _bundle(name, padding, mean, std, seed)

    return make


@pytest.fixture(scope="session")
def short_bundle(make_bundle: Callable[..., Bundle], pixels: Pixels) -> Callable[..., Bundle]:
    """`short_bundle(2)`: V1's first two rows and a classifier that tells images apart by them: exported in moments.

    For tests of files that PyTorch or ExecuTorch writes, which take seconds for each dozen of operations.
    """
    import torch

    from mobilenets.model.encodings import tensor_shapes
    from mobilenets.model.reference import float_model

    def make(rows: int, **variant: Any) -> Bundle:
        b = make_bundle("v1")
        card = b.card.replace(arch=b.card.arch.replace(rows=b.card.arch.rows[:rows], **variant))
        tensors = {k: b.tensors[k] for k in tensor_shapes(card)}
        weight = tensors["classifier.weight"] = 40 * tensors["classifier.weight"][:, : card.arch.features]
        made = Bundle(card, tensors)
        with torch.inference_mode():
            means = float_model(made).pooled(torch.from_numpy(b.card.preprocess.normalize(pixels))).mean(0)
        return Bundle(made.card, {**tensors, "classifier.bias": -weight @ means.numpy()})

    return make


@pytest.fixture(scope="session")
def model(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """V1 .25-32 as a .onnx file."""
    from mobilenets.deploy.writers import onnx as onnx_graph

    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(onnx_graph.onnx_model(make_bundle("v1")))
    return path


@pytest.fixture(scope="module")
def trained(make_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """`trained("v2")`: a network as TensorFlow trains it, padding and epsilon too."""

    def make(name: str, **options: Any) -> Bundle:
        bundle = make_bundle(name, "same", **options)
        return dataclasses.replace(bundle, card=bundle.card.replace(arch=bundle.card.arch.replace(bn_eps=1e-3)))

    return make


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Four preprocessed images, float32 [4, 3, 32, 32]."""
    return np.random.default_rng(7).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def photos(write_images: Callable[..., Path], tmp_path: Path) -> Path:
    """30 different images in two folders."""
    return write_images(tmp_path / "photos", {"a": 20, "b": 10}, side=40)


@pytest.fixture(scope="session")
def lite_bundle(make_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """`lite_bundle("int8", "v2")`: what a .tflite file of that precision is made from, the precision on its card."""

    def make(precision: str, name: str = "v1", **options: Any) -> Bundle:
        source = make_bundle(name, **options)
        if precision == "int8":
            return quantized(source, smooth_images(24, seed=100))
        return Bundle(source.card.replace(precision=precision), source.tensors)

    return make


# ---- the command line and training ---------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latencies measured by tests stay out of the user's cache, and weights that the user has out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILENETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MOBILENETS_OFFLINE", "1")
        for theirs in ("TORCH_HOME", "KERAS_HOME", "HF_HUB_CACHE"):
            patch.setenv(theirs, str(tmp_path_factory.mktemp(theirs)))
        patch.delenv("MOBILENETS_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    """Tests run beside each other: the machine passes for a quiet one, whatever it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "OFF", 1000.0)
        patch.setattr(load, "waiting", lambda: 0)
        patch.setattr(load, "LOOP_SECONDS", 0.0001)
        patch.setattr(load, "PATIENCE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def small_grid() -> Iterator[None]:
    """Networks to choose from are measured in a moment, and the small ones alone; what is measured stays what it is."""
    whole = choose.grid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUND_SECONDS", 0.005)
        patch.setattr(latency, "WARM_UP_SECONDS", 0.001)
        patch.setattr(bench, "ROUNDS", 1)
        patch.setattr(
            choose, "grid", lambda *how: [a for a in whole(*how) if a.name in ("v1", "v2") and a.alpha <= 0.35]
        )
        yield


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a test has just written is run at once, as one that `export` has proved: no child tries it first."""
    monkeypatch.setattr(trial, "check", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes most of a page's time; for tests of its words."""
    from mobilenets.reports import style

    monkeypatch.setattr(style, "_render", lambda *_, **__: b'<svg viewBox="0 0 9 9"></svg>')


@pytest.fixture(scope="session")
def command() -> Callable[..., Ran]:
    """`command("cost", "v1")`: a command line carried out in this process."""
    return run_cli


@pytest.fixture(scope="session")
def write_colours() -> Callable[..., Path]:
    """`write_colours(root, {"train/red": 5, "val/red": 2, ...})`: noisy blue, green, red images, easy to tell apart."""
    return colour_images


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three easy classes, 24 training and 8 validation images each."""
    root = tmp_path_factory.mktemp("data") / "colours"
    return colour_images(root, {f"{s}/{c}": n for s, n in (("train", 24), ("val", 8)) for c in COLOURS})


@pytest.fixture(scope="session")
def written(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """The colours as shards: 72 training images in some two dozen, 24 validation images."""
    return shards(str(colours), tmp_path_factory.mktemp("shards") / "out", shard_mb=SMALL_SHARD)


@pytest.fixture(scope="session")
def tiny_train(colours: Path) -> Callable[..., Run]:
    """`tiny_train(out, "--epochs", 2)`: `mobilenets train` of V1 .25-32 on the three colours."""

    def train(out: Path, *arguments: object, data: Path = colours) -> Run:
        brought = {"--arch", "--alpha"} if "--init" in arguments else set()  # the bundle's own
        left = {k: v for k, v in TINY.items() if k not in arguments and k not in brought}
        own = [word for pair in left.items() for word in pair]
        line = ("train", str(data), "--out", str(out), *own, *map(str, arguments))
        return Run(out, line, run_cli(*line))

    return train


@pytest.fixture(scope="session")
def learned(tiny_train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 12 epochs, long enough to learn the colours; nothing changes it."""
    run = tiny_train(tmp_path_factory.mktemp("learned") / "run", "--epochs", 12, "--lr", "0.01", "--batch", 12)
    assert run.ran.code == 0, run.ran.err
    return run


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve(folder)`: a Server of it; what is fetched is kept in tmp_path / "cache"."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "PAUSE", 0.001)
    servers: list[Server] = []

    def start(folder: Path, **options: bool) -> Server:
        servers.append(Server(folder, **options))
        return servers[-1]

    yield start
    for s in servers:
        s.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("9m")`: a file system of that size, mounted (skips where that isn't allowed)."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(line, capture_output=True, text=True, check=False) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("a tmpfs can't be mounted here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def imported(command: Callable[..., Ran], tmp_path: Path) -> Callable[..., Bundle]:
    """`imported(path, "--resolution", 32)`: the bundle that the command line makes of a file."""

    def run(path: Path, *arguments: object) -> Bundle:
        done = command("import", path, "--out", tmp_path / "bundle", *arguments)
        assert done.code == 0, done.err
        return Bundle.load(tmp_path / "bundle")

    return run
