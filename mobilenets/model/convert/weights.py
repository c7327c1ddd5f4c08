"""Other people's weights -> Bundles: which network they are of, and every tensor under our name and layout.

file or hub name --read--> Foreign (their tensors) --identify--> (Naming, Arch) --convert--> Bundle
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mobilenets import files
from mobilenets.arch import published, zoo
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.model.card import Card, Metric, classifier_card
from mobilenets.model.convert import catalogue, detector_graphs, detectors, fetched, formats, sidecars, two_stage
from mobilenets.model.convert.branches import joined
from mobilenets.model.convert.catalogue import Published
from mobilenets.model.convert.detector_bundle import detector_bundle
from mobilenets.model.convert.foreign import IMAGENET_PREPROCESS, TF_PREPROCESS, Foreign, Stated
from mobilenets.model.convert.formats import frozen_graph, hdf5, post_processing, pytorch, tf_checkpoint, tflite
from mobilenets.model.convert.graphs import from_graph
from mobilenets.model.convert.labels import shown, with_two_classes, without_background
from mobilenets.model.convert.naming import PYTORCH, Naming
from mobilenets.model.convert.prefixes import unprefixed
from mobilenets.model.convert.recognise import Array, check_strides, convert, identify
from mobilenets.model.images import Preprocess

# What the networks of a library have as a rule: timm's V1 was trained by another mean.
USUAL = {
    "timm's V1": dataclasses.replace(TF_PREPROCESS, interpolation="bicubic"),
    **dict.fromkeys(
        ("timm's V2", "timm's V3", "timm's V4", "timm's MNASNET", "timm's EFFICIENTNET", "timm's GHOSTNET"),
        dataclasses.replace(IMAGENET_PREPROCESS, interpolation="bicubic"),
    ),
    "timm's MOBILEONE": dataclasses.replace(IMAGENET_PREPROCESS, crop=0.9, interpolation="bicubic"),
    "timm's MOBILENET": dataclasses.replace(TF_PREPROCESS, interpolation="bicubic"),
    "timm's XCEPTION": dataclasses.replace(TF_PREPROCESS, crop=0.8975, interpolation="bicubic"),
    # whose weights are those that the authors trained with TensorFlow
    **dict.fromkeys(("torchvision's GOOGLENET", "torchvision's INCEPTION"), TF_PREPROCESS),
}
IMAGE_FIELDS: tuple[str, ...] = ("resolution", "mean", "std", "crop", "interpolation")
BOX_FIELDS: tuple[str, ...] = ("resolution", "mean", "std", "interpolation")  # of a detector, which crops nothing
USUAL_SIDE = {detectors.TF: 300, detectors.TORCHVISION: 320}
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # as timm and the Hub call a network's weights
LICENCES = dict.fromkeys(("Keras", "TF-slim", "TFLite"), "Apache-2.0")  # of the weights that TensorFlow published


def open_foreign(source: str, folder: Path | None = None) -> Foreign:
    """Read `source`: a name of `catalogue`, a file, or a folder with one. Raises `UserError`.

    `folder`: where published weights may be, before they are fetched.
    """
    if catalogue.is_name(source):
        entry = catalogue.find(source)
        return _published_as(entry, _open(fetched.cached(entry, folder) or fetched.fetch(entry)))
    return _open(_inside(files.local(source)))


def _open(path: Path) -> Foreign:
    kind = formats.reader(path)
    facts = {} if kind == "tf_checkpoint" else {"sha256": files.sha256(path)}
    match kind:
        case "hdf5":
            arrays, layers = hdf5.read_described(path)
            said = sidecars.of_keras(layers, arrays, path) if layers else Stated()
            return Foreign(str(path), unprefixed(arrays), said, facts=facts)
        case "tf_checkpoint":
            return Foreign(str(path), tf_checkpoint.read(path), facts=facts)
        case "tflite":
            graph = tflite.read(path)
            return Foreign(
                str(path), graph, _of_graph(graph), facts=facts, boxes=graph.boxes or post_processing.PostProcessing()
            )
        case "frozen_graph":
            return _of_frozen(path, facts)
        case _:
            return _of_pytorch(path, facts)


def _published_as(entry: Published, foreign: Foreign) -> Foreign:
    """What was read of published weights, and what is published about them."""
    return dataclasses.replace(
        foreign,
        where=entry.name,
        said=entry.said.over(foreign.said),
        metrics=entry.metrics,
        facts={**foreign.facts, "url": entry.files[0]},
    )


def _inside(path: Path) -> Path:
    """The weights in a folder as the Hub has them; any other path as it is."""
    if not path.is_dir():
        return path
    if is_bundle(path):
        raise UserError(f"{path}: a bundle already; use it as it is")
    found = [path / name for name in IN_FOLDERS if (path / name).is_file()]
    found = found or sorted(p for p in path.iterdir() if p.suffix.lower() in formats.READERS and p.is_file())
    if len(found) > 1 and found[0].name != IN_FOLDERS[0]:
        raise UserError(f"{path}: several weight files ({', '.join(p.name for p in found[:8])}); name one")
    if not found:
        raise UserError(f"{path}: not a file, and a folder without weights ({', '.join(IN_FOLDERS)})")
    return found[0]


def _of_graph(graph: tflite.Graph) -> Stated:
    """What a graph says: labels, its input's size, and for one of uint8 how pixels are scaled."""
    said = Stated(labels=graph.labels, resolution=graph.input_size)
    if graph.input_quantization and graph.input_type == "uint8":
        scale, zero = graph.input_quantization
        said = dataclasses.replace(said, mean=(float(zero),) * 3, std=(1 / scale,) * 3)
    return said


def _of_frozen(path: Path, facts: dict[str, str]) -> Foreign:
    graph = frozen_graph.read(path)
    if any(c.padding != "SAME" for c in graph.convolutions):
        raise UserError(f"{path}: convolutions that don't pad as TensorFlow's MobileNets do (SAME)")
    said = Stated(padding="same", bn_eps=graph.bn_eps)
    per_pixel, less = (graph.numbers.get(f"Preprocessor/{name}") for name in ("mul/x", "sub/y"))
    if per_pixel is not None and less is not None and per_pixel.size == less.size == 1 and per_pixel > 0:
        mean, std = float(less.item() / per_pixel.item()), float(1 / per_pixel.item())
        said = dataclasses.replace(said, mean=(round(mean, 4),) * 3, std=(round(std, 4),) * 3)
    sizes = [v for k, v in graph.numbers.items() if k.endswith("ResizeImage/stack") and v.shape == (2,)]
    if sizes and 32 <= sizes[0][0] == sizes[0][1] <= 4096:
        said = dataclasses.replace(said, resolution=int(sizes[0][0]))
    boxes = post_processing.of_numbers(graph.numbers, graph.kinds, graph.wires)
    strides = {c.weight: c.stride for c in graph.convolutions}
    return Foreign(str(path), graph.tensors, said, facts=facts, boxes=boxes, strides=strides)


def _of_pytorch(path: Path, facts: dict[str, str]) -> Foreign:
    raw = joined(pytorch.read(path))
    tensors = raw if detectors.is_detector(raw) else unprefixed(raw)
    foreign = Foreign(str(path), tensors, sidecars.beside(path) or Stated(), facts=facts)
    entry = catalogue.of_digest(facts["sha256"]) if path.suffix == ".pth" else None
    return _published_as(entry, foreign) if entry else foreign


def foreign_bundle(foreign: Foreign, told: Stated | None = None, body_only: bool = False) -> Bundle:
    """The Bundle of what was read; what is `told` of it counts before what it says itself, and that before the usual.

    `body_only`: without its classifier and whatever else follows the pooling. The card's recipe names what nobody said
    as "assumed". Raises `UserError`.
    """
    said = (told or Stated()).over(foreign.said)
    if _is_detector(foreign):
        if not body_only:
            return _detector(foreign, said)
        foreign = _of_detector(foreign)
        said = said.over(foreign.said)
    if isinstance(foreign.tensors, tflite.Graph):
        library, precision, usual = "TFLite", str(foreign.tensors.precision), TF_PREPROCESS
        net, tensors = from_graph(foreign.tensors, foreign.where, said.arch, said.alpha)
        assumable = IMAGE_FIELDS
    else:
        naming, net, tensors = _identified(foreign, said, body_only)
        library, precision = naming.origin, "float32"
        usual = USUAL.get(naming.name, IMAGENET_PREPROCESS if naming.style is PYTORCH else TF_PREPROCESS)
        net = net.replace(
            padding=said.padding or naming.style.padding, bn_eps=said.bn_eps or naming.bn_eps or naming.style.bn_eps
        )
        assumable = ("padding", "bn_eps", *IMAGE_FIELDS)
    if body_only:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("classifier.")}
        net = net.replace(num_classes=0)
    else:
        _check(foreign, said, net)
    said = dataclasses.replace(said, resolution=said.resolution or _named_resolution(foreign.name, net))
    net = net.replace(resolution=said.resolution or net.resolution)
    net, tensors = with_two_classes(net, tensors)
    net, tensors, names = without_background(net, tensors, None if body_only else said.labels)
    labels = shown(names)
    metrics = foreign.metrics or _published(net, library, precision, labels)
    card = classifier_card(
        net,
        said.of_images(dataclasses.replace(usual, resolution=net.resolution)),
        labels,
        metrics=metrics if net.num_classes else (),
        recipe=_recipe(foreign, said, library, precision, assumable),
        licence=said.licence or _licence(net, library, labels),
    )
    if labels != names:
        card = card.replace(config={**card.config, "names": list(names)})
    return Bundle(card, tensors)


def _recipe(
    foreign: Foreign, said: Stated, library: str, precision: str, assumable: tuple[str, ...]
) -> dict[str, object]:
    """Where weights are from, and as "assumed" what nobody said of their network."""
    return {
        "imported_from": foreign.name,
        "library": library,
        **({"network": said.called} if said.called else {}),
        "stored_as": precision,
        **foreign.facts,
        **({"assumed": unsaid} if (unsaid := [k for k in assumable if getattr(said, k) is None]) else {}),
    }


def _is_detector(foreign: Foreign) -> bool:
    if isinstance(foreign.tensors, tflite.Graph):
        return foreign.tensors.boxes is not None
    return detectors.is_detector(foreign.tensors)


def _detector(foreign: Foreign, said: Stated) -> Bundle:
    """The bundle of a detector."""
    if not isinstance(foreign.tensors, tflite.Graph) and two_stage.is_known(foreign.tensors):
        recipe = _recipe(foreign, said, detectors.TORCHVISION, "float32", ("padding", "bn_eps", *BOX_FIELDS))
        return two_stage.bundle(foreign.tensors, said, foreign.where, recipe=recipe, licence=said.licence or "")
    if isinstance(foreign.tensors, tflite.Graph):
        precision, assumable = str(foreign.tensors.precision), BOX_FIELDS
        found = detector_graphs.from_graph(foreign.tensors, foreign.where, said.arch, said.alpha)
    else:
        precision, assumable = "float32", ("padding", "bn_eps", *BOX_FIELDS)
        try:
            found = detectors.recognised(foreign.tensors, said.arch, said.alpha, said.resolution, foreign.strides)
        except UserError as e:
            raise UserError(f"{foreign.where}: {e}") from e
        arch = found.arch
        net = arch.replace(padding=said.padding or arch.padding, bn_eps=said.bn_eps or arch.bn_eps)
        found = dataclasses.replace(found, arch=net)
    side = said.resolution or USUAL_SIDE[found.origin]
    usual = Preprocess(side, 1.0, (127.5,) * 3, (127.5,) * 3, framing="stretch")
    return detector_bundle(
        dataclasses.replace(found, arch=found.arch.replace(resolution=side)), foreign.boxes, said.labels,
        dataclasses.replace(said, resolution=side).of_images(usual), foreign.where,
        recipe=_recipe(foreign, said, found.origin, precision, assumable), licence=said.licence or "",
    )  # fmt: skip


def _of_detector(foreign: Foreign) -> Foreign:
    """A detector for its body alone, which is named as in a library's classifier, inside of something."""
    if isinstance(foreign.tensors, tflite.Graph):
        raise UserError(f"{foreign.where}: a detector, whose file doesn't say where its body ends: import it whole")
    body = unprefixed(foreign.tensors)
    if not detectors.has_two_stages(foreign.tensors):
        return dataclasses.replace(foreign, tensors=body)
    return dataclasses.replace(foreign, tensors=body, said=foreign.said.over(Stated(bn_eps=two_stage.BN_EPS)))


def _identified(foreign: Foreign, said: Stated, body_only: bool) -> tuple[Naming, Arch, dict[str, Array]]:
    assert not isinstance(foreign.tensors, tflite.Graph)
    try:
        found = identify(foreign.tensors, said.arch, said.alpha, body_only)
        check_strides(found, foreign.strides)
    except UserError as e:
        config = f"; the {sidecars.CONFIG} beside it is of {foreign.said.called}" if foreign.said.called else ""
        raise UserError(f"{foreign.where}: {e}{config}") from e
    return found.naming, found.arch, convert(found, foreign.tensors)


def _check(foreign: Foreign, said: Stated, net: Arch) -> None:
    """Raise `UserError` where what is said of a network isn't so, or isn't what its bundle would compute."""
    if said.num_classes not in (None, net.num_classes):
        raise UserError(
            f"{foreign.where}: the {sidecars.CONFIG} beside it is of {said.num_classes} classes, the weights of "
            f"{net.num_classes}; mend it, or move it away"
        )
    if said.pooling and net.num_classes:
        raise UserError(
            f"{foreign.where}: its network pools by {said.pooling}, these by the average: import its body with "
            "--body-only, and fine-tune that (fit --init)"
        )


def _named_resolution(name: str, arch: Arch) -> int | None:
    """Published files name their resolution: mobilenet_2_5_128_tf.h5, mobilenet_v2_1.0_96.ckpt."""
    named = [int(n) for n in re.findall(r"(?<!\d)\d{2,3}(?!\d)", name)]
    return next((n for n in named if n in zoo.network(arch.name).resolutions), None)


def _published(arch: Arch, library: str, precision: str, labels: tuple[str, ...]) -> tuple[Metric, ...]:
    """What TF-slim published for the network, if the weights may be its."""
    quantized = {"v1": published.V1_TOP1_INT8}
    table = (published.TOP1 if precision == "float32" else quantized).get(arch.name, {})
    top1 = table.get(arch.alpha, {}).get(arch.resolution)
    if top1 is None or not imagenet.is_imagenet(labels) or library not in LICENCES:
        return ()
    return (Metric("top1", top1, "ImageNet, as published with TF-slim's weights", "val", 50_000),)


def _licence(arch: Arch, library: str, labels: tuple[str, ...]) -> str:
    """The licence of a classifier of ImageNet at a width that TensorFlow published; of others it isn't known."""
    its = imagenet.is_imagenet(labels) and arch.alpha in published.TOP1.get(arch.name, {})
    return LICENCES.get(library, "") if its else ""


def assumptions(card: Card) -> str:
    """What a card's recipe names as assumed, with its values; empty of nothing."""
    p, a = card.preprocess, card.arch
    values: dict[str, object] = {"padding": a.padding, "bn_eps": a.bn_eps, **vars(p)}
    said = []
    for name in card.recipe.get("assumed", ()):
        value = values[name]
        said.append(f"{name} {', '.join(f'{v:g}' for v in value) if isinstance(value, tuple) else value}")
    return "; ".join(said)
