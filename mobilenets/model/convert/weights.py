"""Other people's weights -> Bundles: which network they are of, and every tensor under our name and layout.

file or hub name --read--> Foreign (their tensors) --identify--> (Naming, Arch) --convert--> Bundle
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from mobilenets import files
from mobilenets.arch import published, zoo
from mobilenets.arch.graph import Padding
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Metric, classifier_card
from mobilenets.model.convert import formats
from mobilenets.model.convert.formats import hdf5, pytorch, tf_checkpoint, tflite
from mobilenets.model.convert.hubs import IMAGENET_PREPROCESS, TF_PREPROCESS, Foreign
from mobilenets.model.convert.namings import PYTORCH
from mobilenets.model.convert.recognise import Array, Arrays, convert, from_graph, identify, unprefixed
from mobilenets.model.images import Preprocess


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line."""
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a readable list of labels ({e})") from e
    if not labels:
        raise UserError(f"{path}: no labels in it")
    return labels


def without_background(
    arch: Arch, tensors: dict[str, Array], labels: tuple[str, ...] | None
) -> tuple[Arch, dict[str, Array], tuple[str, ...]]:
    """The classifier without TensorFlow's class 0, "background", where it has one; and a label for every class."""
    background = arch.num_classes == 1001 and (labels is None or len(labels) == 1000)
    if labels and labels[0].lower() == "background" and len(labels) in (arch.num_classes, arch.num_classes + 1):
        labels, background = labels[1:], True
    if background and (labels is None or len(labels) == arch.num_classes - 1):
        tensors = {k: v[1:] if k.startswith("classifier.") else v for k, v in tensors.items()}
        arch = arch.replace(num_classes=arch.num_classes - 1)
    if labels is None:
        known = arch.num_classes == 1000
        labels = tuple(imagenet.classes().values()) if known else tuple(f"class {i}" for i in range(arch.num_classes))
    if len(labels) != arch.num_classes:
        raise UserError(f"there are {len(labels)} labels for {arch.num_classes} classes; give the right --labels")
    return arch, tensors, labels


def open_foreign(source: str) -> Foreign:
    """Read `source`: "torchvision:NAME", "timm:NAME", or a file. Raises `UserError`."""
    library, _, name = source.partition(":")
    if library in ("torchvision", "timm") and name:
        from mobilenets.model.convert import hubs

        return hubs.HUBS[library](name)
    path = files.local(source)
    readers: dict[str, Callable[[Path], Arrays | tflite.Graph]] = {
        "hdf5": hdf5.read,
        "tf_checkpoint": tf_checkpoint.read,
        "pytorch": pytorch.read,
        "tflite": tflite.read,
    }
    kind = formats.reader(path)
    read = readers[kind](path)
    facts = {} if kind == "tf_checkpoint" else {"sha256": files.sha256(path)}
    if not isinstance(read, tflite.Graph):
        return Foreign(source, unprefixed(read) if kind == "pytorch" else read, facts=facts)
    preprocess = TF_PREPROCESS
    if read.input_quantization and read.input_type == "uint8":
        scale, zero = read.input_quantization
        preprocess = Preprocess(224, 0.875, (float(zero),) * 3, (1 / scale,) * 3)
    return Foreign(source, read, preprocess, labels=read.labels, facts=facts)


def foreign_bundle(
    foreign: Foreign,
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    labels: tuple[str, ...] | None = None,
    padding: Padding | None = None,
    bn_eps: float | None = None,
) -> Bundle:
    """The Bundle of what was read; arguments as in `import_weights`."""
    if isinstance(foreign.tensors, tflite.Graph):
        library, preprocess = "TFLite", foreign.preprocess or TF_PREPROCESS
        net, tensors = from_graph(foreign.tensors, foreign.where, arch, alpha)
        precision = foreign.tensors.precision
    else:
        try:
            found = identify(foreign.tensors, arch, alpha)
        except UserError as e:
            raise UserError(f"{foreign.where}: {e}") from e
        naming, tensors = found.naming, convert(found, foreign.tensors)
        library, precision = naming.origin, "float32"
        net = found.arch.replace(
            padding=padding or foreign.padding or naming.style.padding,
            bn_eps=bn_eps or foreign.bn_eps or naming.bn_eps or naming.style.bn_eps,
        )
        preprocess = foreign.preprocess or (IMAGENET_PREPROCESS if naming.style is PYTORCH else TF_PREPROCESS)
        net = net.replace(resolution=preprocess.resolution if foreign.preprocess else _resolution(foreign.where, net))
    if resolution:
        net = net.replace(resolution=resolution)
    net, tensors, names = without_background(net, tensors, labels or foreign.labels)
    card = classifier_card(
        net,
        dataclasses.replace(preprocess, resolution=net.resolution),
        names,
        metrics=foreign.metrics or _published(net, library, precision),
        recipe={"imported_from": foreign.where, "library": library, "stored_as": precision, **foreign.facts},
        licence=foreign.licence,
    )
    return Bundle(card, tensors)


def _resolution(where: str, arch: Arch) -> int:
    """Published files name their resolution: mobilenet_2_5_128_tf.h5, mobilenet_v2_1.0_96.ckpt."""
    named = [int(n) for n in re.findall(r"(?<!\d)\d{2,3}(?!\d)", Path(where).name)]
    return next((n for n in named if n in zoo.network(arch.name).resolutions), arch.resolution)


def _published(arch: Arch, library: str, precision: str) -> tuple[Metric, ...]:
    """What TF-slim published for the network, if the weights may be its."""
    quantized = {"v1": published.V1_TOP1_INT8}
    table = (published.TOP1 if precision == "float32" else quantized).get(arch.name, {})
    top1 = table.get(arch.alpha, {}).get(arch.resolution)
    if top1 is None or arch.num_classes != 1000 or library not in ("Keras", "TF-slim", "TFLite"):
        return ()
    return (Metric("top1", top1, "ImageNet, as published with TF-slim's weights", "val", 50_000),)
