"""Classifiers whose matrix is made of a few vectors: the papers' definitions, and the way from training to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from small import smooth_images

from mobilenets.arch import matrices, zoo
from mobilenets.compression import quantize
from mobilenets.deploy import engines
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Preprocess
from mobilenets.model.module import build
from mobilenets.training import trainer
from mobilenets.training.calibrated import cooled

BOTH = ["toeplitz", "fastfood"]


def drawn(structure: str, cin: int, cout: int, deviation: float = 1.0) -> dict[str, np.ndarray]:
    return matrices.random(structure, cin, cout, deviation, np.random.default_rng(0))


def shifted(n: int, corner: int) -> np.ndarray:
    """Moves a vector down by one; what falls off comes in on top, times `corner`."""
    z = np.eye(n, k=-1)
    z[0, -1] = corner
    return z


def test_toeplitz_like_matrices_have_a_low_displacement_rank() -> None:
    """Of the displacement by Z_1 and Z_-1, which of any matrix is full (1510.01722, section 2)."""
    n = 24
    w = matrices.matrix("toeplitz", n, n, drawn("toeplitz", n, n), np)
    displaced = shifted(n, 1) @ w - w @ shifted(n, -1)
    assert np.linalg.matrix_rank(displaced, tol=1e-4 * np.linalg.norm(displaced, 2)) == matrices.RANK
    assert np.linalg.matrix_rank(w) == n


def test_fastfood_is_the_papers_product() -> None:
    """S H G P H B (1412.7149), with H scaled to keep lengths."""
    parts = drawn("fastfood", 16, 16)
    h, p = hadamard(16) / 4, np.eye(16)[np.random.default_rng(matrices.SEED).permutation(16)]
    b, g, s = (np.diag(parts[k][0]) for k in "bgs")
    np.testing.assert_allclose(matrices.matrix("fastfood", 16, 16, parts, np), s @ h @ g @ p @ h @ b, atol=1e-5)


@pytest.mark.parametrize("structure", BOTH)
@pytest.mark.parametrize(("cin", "cout"), [(8, 20), (12, 5), (48, 1)])
def test_numpy_and_pytorch_make_the_same_matrix_of_any_shape(structure: str, cin: int, cout: int) -> None:
    parts = drawn(structure, cin, cout)
    made = matrices.matrix(structure, cin, cout, parts, np)
    assert made.shape == (cout, cin)
    again = matrices.matrix(structure, cin, cout, {k: torch.from_numpy(v) for k, v in parts.items()}, torch)
    np.testing.assert_allclose(again.numpy(), made, atol=1e-5)


@pytest.mark.parametrize("structure", BOTH)
def test_random_ones_have_the_spread_that_is_asked_for(structure: str) -> None:
    made = matrices.matrix(structure, 256, 250, drawn(structure, 256, 250, 0.01), np)
    assert made.std() == pytest.approx(0.01, rel=0.2)
    assert abs(made.mean()) < 1e-3


@pytest.mark.parametrize("structure", BOTH)
def test_from_training_to_files(structure: str, tmp_path: Path) -> None:
    """What PyTorch trains is what a bundle keeps, in a fraction of the numbers; files have the matrix."""
    torch.manual_seed(0)
    arch = zoo.arch(f"v1-{structure}", 0.25, 32, 300)
    net = build(arch).eval()
    card = classifier_card(arch, Preprocess(32), [f"class {i}" for i in range(300)])
    path = tmp_path / "bundle"
    Bundle(card, {k: v.numpy() for k, v in net.state_dict().items()}).save(path)
    bundle = Bundle.load(path)
    assert bundle.card.arch == arch
    dense = bundle.dense()
    assert dense.card.arch.classifier == "dense"
    assert dense.tensors["classifier.weight"].shape == (300, 256)
    assert sum(t.size for t in bundle.tensors.values()) < 0.8 * sum(t.size for t in dense.tensors.values())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        expected = net(torch.from_numpy(bundle.card.preprocess.normalize(pixels))).softmax(1).numpy()
        again = bundle.module()(torch.from_numpy(bundle.card.preprocess.normalize(pixels))).softmax(1).numpy()
    np.testing.assert_allclose(again, expected, atol=1e-6)
    engines.module("onnxruntime").write(bundle, tmp_path / "net.onnx", None)
    found = engines.load(tmp_path / "net.onnx")(pixels)
    np.testing.assert_allclose(next(iter(found.values())), expected, atol=1e-5)


@pytest.mark.parametrize("structure", BOTH)
def test_logits_are_divided_by_a_temperature(structure: str) -> None:
    source = random_bundle(zoo.arch(f"v1-{structure}", 0.25, 32, 10))
    halved = cooled(source, 2.0).dense().tensors["classifier.weight"]
    np.testing.assert_allclose(halved, source.dense().tensors["classifier.weight"] / 2, rtol=1e-5)


@pytest.mark.parametrize("structure", BOTH)
def test_its_vectors_are_trained(structure: str) -> None:
    net = build(zoo.arch(f"v1-{structure}", 0.25, 32, 10))
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    parts = matrices.vectors(structure, 256, 10)
    assert all(net.classifier.get_parameter(k).grad.abs().max() > 0 for k in parts)


def test_int8_and_further_training_take_the_matrix() -> None:
    int8 = random_bundle(zoo.arch("v1-toeplitz", 0.25, 32, 10), "int8")
    assert int8.card.arch.classifier == "dense"
    float_ = random_bundle(zoo.arch("v1-fastfood", 0.25, 32, 10))
    made = quantize.quantize_bundle(float_, smooth_images(8, 32))
    assert trainer.initial_arch(float_, 64).classifier == "dense"
    assert made.card.arch.classifier == "dense"
    assert made.tensors["classifier.weight"].dtype == np.int8
