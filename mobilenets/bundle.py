"""A Bundle: a folder of card.json and weights.safetensors that says everything about a trained network. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from mobilenets import files
from mobilenets.errors import UserError, disk_errors, unknown
from mobilenets.images import Preprocess
from mobilenets.spec import Arch

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1
CARD, WEIGHTS = "card.json", "weights.safetensors"
MODELS = Path(__file__).with_name("models")  # bundles that come with the package, each by its folder's name
# Of bundles, float32 and int8. The others are of exported files: their weights in 16-bit floats (activations too, where
# the runtime can); dynamic: int8 weights, and activations that are quantized as they come; int4: weights in 4 bits.
Precision = Literal["float32", "float16", "int8", "dynamic", "int4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "dynamic", "int4")
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Metric:
    """A measured number and what it was measured on. Accuracies are in percent."""

    name: str
    value: float
    data: str
    split: str
    count: int


@dataclass(frozen=True)
class Card:
    """What a network is, what it was trained on, how well it does, and where it came from.

    `float_ops`: names of the operations that an int8 network keeps in float (`quantize` says how).
    """

    arch: Arch
    preprocess: Preprocess
    labels: tuple[str, ...]
    task: str = "classify"
    precision: Precision = "float32"
    float_ops: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    parent: str | None = None
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arch.classes != len(self.labels):
            raise UserError(f"the card has {len(self.labels)} labels for a network of {self.arch.classes} classes")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.float_ops and self.precision != "int8":
            raise UserError(
                f"the card of a {self.precision} network names operations to keep in float; only int8's can"
            )
        for name in self.float_ops:
            if name not in self.arch.activations[1:]:
                raise unknown("operation", name, self.arch.activations[1:])

    def replace(self, **changes: Any) -> Card:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "arch": self.arch.to_json(),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "float_ops": list(self.float_ops),
            "metrics": [dataclasses.asdict(m) for m in self.metrics],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any], where: str = "card") -> Card:
        """The inverse of `to_json`; a UserError for one that is newer than this program, or malformed."""
        if not isinstance(d, dict) or not isinstance(d.get("format"), int):
            raise UserError(f"{where}: not a mobilenets card")
        if d["format"] > FORMAT:
            raise UserError(
                f"{where}: written by a newer mobilenets (card format {d['format']}, this one reads up to {FORMAT}); "
                "upgrade with: pip install --upgrade mobilenets"
            )
        try:
            fields = {f.name: d[f.name] for f in dataclasses.fields(cls) if f.name != "float_ops"}
            return cls(**{
                **fields,
                "arch": Arch.from_json(d["arch"]),
                "preprocess": Preprocess.from_json(d["preprocess"]),
                "labels": tuple(d["labels"]),
                "float_ops": tuple(d.get("float_ops", ())),  # earlier cards have none
                "metrics": tuple(Metric(**m) for m in d["metrics"]),
            })  # fmt: skip
        except (KeyError, TypeError) as e:
            raise UserError(f"{where}: a field is missing or malformed: {e}") from e


def stamp(card: Card) -> Card:
    """`card` with the time and the versions of what made it."""
    versions = {"python": platform.python_version()}
    for name in ("mobilenets", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return card.replace(created=now, versions=versions)


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

    def __rich__(self) -> RenderableType:
        from mobilenets.show import card_table

        return card_table(f"bundle {self.digest[:16]}", self.card, sum(t.nbytes for t in self.tensors.values()))

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


def tensor_shapes(arch: Arch, precision: Precision, float_ops: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a bundle of `arch` holds; `quantize` says what the int8 ones are."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in arch.layers:
        name, weight = op.name, (op.cout, op.cin // op.groups, op.kernel, op.kernel)
        if precision == "int8":
            shapes |= {f"{name}.weight": weight, f"{name}.bias": (op.cout,)}
            if name not in float_ops:
                shapes[f"{name}.weight_scale"] = (op.cout,)
        elif op.kind == "linear":
            shapes |= {f"{name}.weight": weight[:2], f"{name}.bias": (op.cout,)}
        else:
            if op.kind != "norm":
                shapes[f"{name}.conv.weight"] = weight
            if op.bias:
                shapes[f"{name}.conv.bias"] = (op.cout,)
            if op.norm:
                shapes |= {f"{name}.norm.{k}": (op.cout,) for k in NORM_TENSORS}
                shapes[f"{name}.norm.num_batches_tracked"] = ()
    if precision == "int8":
        shapes |= {f"{a}.{k}": () for a in arch.activations for k in ("scale", "zero_point")}
    return shapes


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
