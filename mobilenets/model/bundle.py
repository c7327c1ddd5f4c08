"""A Bundle: a folder of card.json and weights.safetensors that says everything about a trained network. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from mobilenets import files
from mobilenets.arch.graph import CLIPS
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError, disk_errors
from mobilenets.model.card import Card, Precision, stamp
from mobilenets.model.encodings import Array, Tensors, fold, pack, tensor_shapes
from mobilenets.model.images import Preprocess

CARD, WEIGHTS = "card.json", "weights.safetensors"
MODELS = Path(__file__).parents[1] / "pretrained"  # bundles that come with the package, each by its folder's name


def _canonical(card: Mapping[str, Any]) -> bytes:
    body = {k: v for k, v in card.items() if k != "digest"}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Bundle:
    """A card and its tensors (numpy, named as in the model's state_dict; for int8, see `quantize`)."""

    card: Card
    tensors: Tensors
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**self.card.to_json(), "digest": self.digest}

    def save(self, path: Path, half: bool = False) -> Bundle:
        """Write the folder atomically, in the place of a bundle that is there; returns the same Bundle with its digest.

        `half` stores the weights (not norms and biases) as 16-bit floats: half the size, read back as float32.
        Raises `UserError` where anything but a bundle would be replaced.
        """
        check_out(path)
        with files.atomic_dir(path) as tmp:
            arrays = {k: np.asarray(v, order="C") for k, v in sorted(self.tensors.items())}
            if half:
                arrays = {k: v.astype(np.float16) if _halved(v) else v for k, v in arrays.items()}
            (tmp / WEIGHTS).write_bytes(safetensors.numpy.save(arrays))  # save_file hides a full disk's OSError
            card = stamp(self.card)
            d = card.to_json()
            d["files"] = {WEIGHTS: files.sha256(tmp / WEIGHTS)}
            d["digest"] = hashlib.sha256(_canonical(d)).hexdigest()
            (tmp / CARD).write_text(json.dumps(d, indent=2) + "\n")
        return Bundle(card, self.tensors, d["digest"])

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read and verify a folder: every file present, every digest right. Raises `UserError`."""
        card_path = path / CARD
        try:
            d = json.loads(card_path.read_bytes())
        except FileNotFoundError as e:
            raise UserError(f"{path}: not a bundle: {CARD} is missing") from e
        except (ValueError, OSError) as e:
            raise UserError(f"{card_path}: not readable as JSON: {e}") from e
        card = Card.from_json(d, str(card_path))
        if d.get("digest") != hashlib.sha256(_canonical(d)).hexdigest():
            raise UserError(f"{card_path}: altered since it was written (its digest differs); restore or re-create it")
        if set(d.get("files", ())) != {WEIGHTS}:
            raise UserError(f"{card_path}: lists files {sorted(d.get('files', ()))}, not {WEIGHTS}")
        weights = path / WEIGHTS
        if not weights.is_file():
            raise UserError(f"{path}: {WEIGHTS} is missing; restore or re-create the bundle")
        data = weights.read_bytes()
        if hashlib.sha256(data).hexdigest() != d["files"][WEIGHTS]:
            raise UserError(f"{weights}: altered or damaged (its digest differs); restore or re-create the bundle")
        try:
            tensors = {
                k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in safetensors.numpy.load(data).items()
            }
        except (safetensors.SafetensorError, ValueError) as e:
            raise UserError(f"{weights}: not readable as safetensors: {e}") from e
        expected = tensor_shapes(card.arch, card.precision, card.float_ops)
        for name in sorted({*expected, *tensors}):
            if name not in tensors or name not in expected:
                how = "is missing" if name in expected else "is not of this network"
                raise UserError(f"{weights}: tensor {name} {how}")
            if tensors[name].shape != expected[name]:
                raise UserError(f"{weights}: tensor {name} is {tensors[name].shape}, not {expected[name]}")
        return cls(card, tensors, d["digest"])


def _halved(v: npt.NDArray[Any]) -> bool:
    """Whether a tensor is stored in 16 bits: a layer's weights, unless their values are beyond them."""
    return v.dtype == np.float32 and v.ndim > 1 and bool(np.abs(v).max(initial=0) < np.finfo(np.float16).max)


def is_bundle(path: Path) -> bool:
    return (path / CARD).is_file()


def check_out(path: Path) -> None:
    """A UserError where a bundle can't be written, or anything but a bundle would be replaced by it."""
    with disk_errors(str(path)):
        if path.exists() and not is_bundle(path) and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} exists and isn't a bundle, and would be replaced; choose another --out")


def packaged() -> dict[str, Path]:
    """The trained networks that come with the package, by name."""
    return {p.parent.name: p.parent for p in sorted(MODELS.glob(f"*/{CARD}"))}


def located(path: Path) -> Path:
    """`path`; or, where there is nothing, the packaged network of that name."""
    return path if path.exists() else packaged().get(str(path), path)


def find_bundle(path: Path) -> Path:
    """The bundle at `path`: the folder itself, or a run's float bundle; or a packaged network's. Raises `UserError`."""
    path = located(path)
    for p in (path, path / "float"):
        if is_bundle(p):
            return p
    raise UserError(
        f"{path}: no bundle here ({CARD} is missing); give a bundle's folder, a finished run's{_or_packaged()}"
    )


def _or_packaged() -> str:
    return f", or one of {', '.join(packaged())}" if packaged() else ""


def random_bundle(arch: Arch, precision: Precision) -> Bundle:
    """A bundle with random weights, for measuring: latency and size don't depend on what the weights are."""
    rng = np.random.default_rng(0)
    preprocess = Preprocess(arch.resolution)
    card = Card(arch, preprocess, tuple(f"class {i}" for i in range(arch.classes)), precision=precision)
    tensors: dict[str, Array] = {}
    for name, shape in tensor_shapes(arch, "float32").items():
        if len(shape) > 1:
            fan_in = math.prod(shape[1:])
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        else:
            ones = name.endswith(("norm.weight", "running_var"))
            tensors[name] = (np.ones if ones else np.zeros)(shape, np.float32 if shape else np.int64)
    if precision == "int8":
        clipped = {op.name for op in arch.ops if op.activation in CLIPS}
        ranges = {op.name: (0.0, 6.0) if op.name in clipped else (-3.0, 3.0) for op in arch.ops}
        return Bundle(card, pack(arch, preprocess, fold(arch, tensors), ranges))
    return Bundle(card, tensors)
