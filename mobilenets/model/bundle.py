"""A Bundle: a card and weights, which say everything about a trained network. No torch.

It is a folder of card.json and weights.safetensors, or one entropy-coded file (`mnz`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from mobilenets import console, files
from mobilenets.arch.matrices import DENSE
from mobilenets.arch.operations import CLIPS
from mobilenets.arch.spec import Arch
from mobilenets.arguments import StrPath, checked
from mobilenets.errors import UserError, disk_errors
from mobilenets.model import hub, installed, mnz
from mobilenets.model.card import Card, Precision, classifier_card, stamp
from mobilenets.model.encodings import (
    PLAIN,
    Array,
    Tensors,
    code_bits,
    decode,
    encode,
    find,
    fold,
    multiplied_out,
    pack,
    tensor_shapes,
    weight_name,
)
from mobilenets.model.hub import CARD as CARD
from mobilenets.model.hub import WEIGHTS as WEIGHTS
from mobilenets.model.images import Preprocess

if TYPE_CHECKING:
    from mobilenets.model.net import Net

MODELS = Path(__file__).parents[1] / "pretrained"  # bundles that come with the package, each by its folder's name


def _canonical(card: Mapping[str, Any]) -> bytes:
    body = {k: v for k, v in card.items() if k != "digest"}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Bundle:
    """A card and its tensors (numpy, named as in the model's state_dict; for int8, see `quantize`)."""

    card: Card
    tensors: Tensors = field(repr=False)
    digest: str = ""

    def _repr_html_(self) -> str:
        return console.facts(f"bundle {self.digest[:16]}", self.card.facts())

    def to_json(self) -> dict[str, Any]:
        return {**self.card.to_json(), "digest": self.digest}

    def dense(self) -> Bundle:
        """The same bundle with every tensor stored plainly: what all that computes with weights takes.

        A matrix that is made of a few vectors is whole then, and the network's classifier as any other's.
        """
        card, tensors = self.card, self.tensors
        if card.encodings:
            card, tensors = card.replace(encodings={}), decode(card, tensors)
        if card.arch.classifier != DENSE:
            tensors = multiplied_out(card, tensors)
            card = card.replace(arch=card.arch.replace(classifier=DENSE))
        return self if card is self.card else Bundle(card, tensors, self.digest)

    def encoded(self, encoding: str) -> Bundle:
        """The same float bundle with weights stored as `encoding` says, but for those that it can't hold."""
        plain = self.dense()
        if plain.card.precision == "int8":
            raise UserError("an int8 bundle's weights are stored as they are computed with")
        how = find(encoding)
        names = {
            op.name: encoding
            for op in plain.card.graph.layers
            if encoding != PLAIN and op.kind != "norm" and how.holds(plain.tensors[weight_name(op)])
        }
        return Bundle(plain.card.replace(encodings=names), encode(plain.card, plain.tensors, names))

    def module(self) -> Net:
        """The bundle as a PyTorch module in eval mode, its weights as they are: to use, to train on, to take apart.

        It has what `mobilenets.create` gives. Raises `UserError` for an int8 bundle: its whole numbers run in files.
        """
        from mobilenets.model.net import of_tensors

        if self.card.precision != "float32":
            raise UserError(
                f"a module computes in float32, and this bundle is {self.card.precision}: take the float bundle it was "
                "made of, or mobilenets.load to run it"
            )
        plain = self.dense()
        return of_tensors(plain.card, plain.tensors)

    def save(self, path: StrPath) -> Bundle:
        """Write it atomically, in the place of a bundle that is there; returns the same Bundle with its digest.

        A folder; one file, entropy-coded, where the path ends in .mnz. Raises `UserError` where anything but a bundle
        would be replaced.
        """
        path = Path(path)
        check_out(path)
        card = stamp(self.card)
        d = sealed(card, self.tensors)
        made = as_files(d, self.tensors, path.suffix)
        with (files.atomic_file if path.suffix == mnz.SUFFIX else files.atomic_dir)(path) as tmp:
            for name, data in made.items():  # safetensors' own save_file hides a full disk's OSError
                (tmp / name).write_bytes(data)
        return Bundle(card, self.tensors, d["digest"])

    @classmethod
    @checked
    def load(cls, path: StrPath) -> Bundle:
        """Read and verify a folder, or a .mnz file: all is there, every digest right. Raises `UserError`."""
        card, d, tensors = read(located(Path(path)))
        if d["format"] == 1:  # whose weights were halved without a word on the card
            tensors = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tensors.items()}
        return cls(card, tensors, d["digest"])


def _safetensors(tensors: Tensors) -> bytes:
    made: bytes = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in sorted(tensors.items())})
    return made


def sealed(card: Card, tensors: Tensors) -> dict[str, Any]:
    """A card as JSON, with the digests of the weights and of itself."""
    d = card.to_json()
    d["files"] = {WEIGHTS: hashlib.sha256(_safetensors(tensors)).hexdigest()}
    d["digest"] = hashlib.sha256(_canonical(d)).hexdigest()
    return d


def verified(d: dict[str, Any], where: str) -> Card:
    """The card of its JSON, which says its weights' digest. Raises `UserError` where it isn't as it was written."""
    card = Card.from_json(d, where)
    if d.get("digest") != hashlib.sha256(_canonical(d)).hexdigest():
        raise UserError(f"{where}: altered since it was written (its digest differs); restore or re-create it")
    listed = d.get("files")
    if not isinstance(listed, dict) or [*listed] != [WEIGHTS]:
        named = sorted(listed) if isinstance(listed, dict) else listed
        raise UserError(f"{where}: lists files {named}, not {WEIGHTS}")
    return card


def as_files(d: Mapping[str, Any], tensors: Tensors, suffix: str) -> dict[str, bytes]:
    """The files of a bundle whose card is `d`, by their names in its folder; of a .mnz file, the one without a name."""
    if suffix == mnz.SUFFIX:
        return {"": mnz.pack(d, tensors, code_bits(Card.from_json(d)))}
    return {WEIGHTS: _safetensors(tensors), CARD: (json.dumps(d, indent=2) + "\n").encode()}


def read(path: Path) -> tuple[Card, dict[str, Any], dict[str, Array]]:
    """The card of a folder or a .mnz file, the same as the JSON that was written, and its tensors.

    All is there, every digest right. Raises `UserError`.
    """
    card, d, tensors, where = (_read_file if is_file(path) else _read_folder)(path)
    expected = tensor_shapes(card)
    for name in sorted({*expected, *tensors}):
        if name not in tensors or name not in expected:
            how = "is missing" if name in expected else "is not of this network"
            raise UserError(f"{where}: tensor {name} {how}")
        if tensors[name].dtype.kind not in "fiu":
            raise UserError(f"{where}: tensor {name} is {tensors[name].dtype}, no numbers")
        if tensors[name].shape != expected[name]:
            raise UserError(f"{where}: tensor {name} is {tensors[name].shape}, not {expected[name]}")
    return card, d, tensors


def _read_folder(path: Path) -> tuple[Card, dict[str, Any], dict[str, Array], str]:
    """A folder's card, the same as JSON, its tensors, and the file that they are in."""
    if not (path / CARD).exists():
        raise UserError(f"{path}: not a bundle: {CARD} is missing")
    d = files.read_json(path / CARD, (), "a bundle")
    card, weights = verified(d, str(path / CARD)), path / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{path}: {WEIGHTS} is missing; restore or re-create the bundle")
    data = weights.read_bytes()
    if hashlib.sha256(data).hexdigest() != d["files"][WEIGHTS]:
        raise UserError(f"{weights}: altered or damaged (its digest differs); restore or re-create the bundle")
    try:
        return card, d, safetensors.numpy.load(data), str(weights)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as e:
        raise UserError(f"{weights}: not readable as safetensors: {e}") from e


def _read_file(path: Path) -> tuple[Card, dict[str, Any], dict[str, Array], str]:
    """The same of a .mnz file."""
    card, d, tensors = mnz.unpack(path.read_bytes(), str(path), verified)
    check_weights(d, tensors, str(path))
    return card, d, tensors, str(path)


def check_weights(d: Mapping[str, Any], tensors: Tensors, where: str) -> None:
    """Raises `UserError` where tensors aren't those of the card `d`, by its digest."""
    if hashlib.sha256(_safetensors(tensors)).hexdigest() != d["files"][WEIGHTS]:
        raise UserError(f"{where}: its weights aren't those of its card (their digest differs); re-create it")


def is_file(path: Path) -> bool:
    """Whether a bundle in one file is at `path`."""
    return path.suffix == mnz.SUFFIX and path.is_file()


def is_bundle(path: Path) -> bool:
    return (installed.current(path) / CARD).is_file() or is_file(path)


def identity(path: Path) -> str:
    """A digest that changes with the file at `path`, or with the bundle."""
    path = installed.current(path)
    return files.sha256(path / CARD if (path / CARD).is_file() else path)


def check_out(path: Path) -> None:
    """A UserError where a bundle can't be written, or anything but a bundle would be replaced by it."""
    with disk_errors(str(path)):
        if path.exists() and not is_bundle(path) and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} exists and isn't a bundle, and would be replaced; choose another --out")
        if path.suffix == mnz.SUFFIX and path.is_dir():
            raise UserError(f"{path} is a folder, and a bundle of that name is one file; choose another --out")
    files.check_place(path)


def packaged() -> dict[str, Path]:
    """The trained networks that come with the package, by name."""
    return {p.parent.name: p.parent for p in sorted(MODELS.glob(f"*/{CARD}"))}


def located(path: Path) -> Path:
    """`path`, or the version in use of a bundle that is updated; where there is nothing, the packaged network of that
    name, or the Hub's at that address.

    Raises `UserError` for any other address.
    """
    if path.exists():
        return installed.current(path)
    return hub.fetched(path, Bundle.load) if hub.is_address(path) else packaged().get(str(path)) or files.local(path)


def find_bundle(path: Path) -> Path:
    """The bundle at `path`: the folder itself, or a run's float bundle; or a packaged network's. Raises `UserError`."""
    path = located(path)
    for p in (path, path / "float"):
        if is_bundle(p):
            return p
    why = "it is a file of another kind" if path.is_file() else f"{CARD} is missing"
    raise UserError(
        f"{path}: no bundle here ({why}); give a bundle's folder or .mnz file, a finished run's, hf://user/name{_or_packaged()}"
    )


def _or_packaged() -> str:
    return f", or one of {', '.join(packaged())}" if packaged() else ""


def random_bundle(arch: Arch, precision: Precision = "float32") -> Bundle:
    """A bundle with random weights, for measuring: latency and size don't depend on what the weights are."""
    preprocess = Preprocess(arch.resolution, size=arch.size)
    return with_random_weights(
        classifier_card(arch, preprocess, [f"class {i}" for i in range(arch.num_classes)]), precision
    )


def with_random_weights(card: Card, precision: Precision = "float32", given: Tensors | None = None) -> Bundle:
    """The network of a card with random weights, in any precision; `given`: tensors that aren't random, by name."""
    rng = np.random.default_rng(0)
    graph = card.graph
    tensors: dict[str, Array] = {}
    for name, shape in tensor_shapes(card.replace(precision="float32", float_ops=())).items():
        if name in graph.constants:  # anchors, whose sizes are positive
            tensors[name] = rng.random(shape, np.float32)
        elif len(shape) > 1:
            fan_in = math.prod(shape[1:])
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        else:
            ones = name.endswith(("norm.weight", "running_var"))
            tensors[name] = (np.ones if ones else np.zeros)(shape, np.float32 if shape else np.int64)
    for op in graph.layers:
        for part in ("weight", "bias") if op.shares else ():
            if f"{op.name}.conv.{part}" in tensors:
                tensors[f"{op.name}.conv.{part}"] = tensors[f"{op.shares}.conv.{part}"]
    tensors |= given or {}
    if precision == "int8":
        clipped = {op.name for op in graph.ops if op.activation in CLIPS}
        ranges = {op.name: (0.0, 6.0) if op.name in clipped else (-3.0, 3.0) for op in graph.ops}
        plain = Bundle(card, tensors).dense()
        packed = pack(graph, card.preprocess, fold(plain.card, plain.tensors), ranges, float_ops=card.float_ops)
        packed |= {name: tensors[name] for name in graph.constants}
        return Bundle(plain.card.replace(precision=precision), packed)
    return Bundle(card.replace(precision=precision), tensors)
