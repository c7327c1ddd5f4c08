"""A network by its name: with random weights or trained ones, whole or up to its maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from mobilenets.arch import spec, zoo
from mobilenets.arch.spec import Arch, Variant
from mobilenets.arguments import StrPath
from mobilenets.errors import UserError
from mobilenets.model import hub
from mobilenets.model.bundle import Bundle, find_bundle, is_file, packaged
from mobilenets.model.convert import catalogue
from mobilenets.model.convert.weights import foreign_bundle, open_foreign
from mobilenets.model.encodings import tensor_shapes
from mobilenets.model.net import Backbone, Net, card_of, of_tensors


def create(
    name: str,
    *,
    alpha: float | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    pretrained: Bundle | StrPath | bool | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    variant: Variant | None = None,
) -> Net | Backbone:
    """A network in training mode, or its maps; `mobilenets.create` says what each parameter is. Raises `UserError`."""
    if out_indices is not None and not features_only:
        raise UserError("out_indices names maps: with features_only=True")

    def built(classes: int) -> Arch:
        options = dataclasses.asdict(variant or Variant())
        return spec.scale(zoo.network(name), 1.0 if alpha is None else alpha, resolution, classes, **options)

    if pretrained is None or pretrained is False:
        net = Net(card_of(built(1000 if num_classes is None else num_classes)))
    else:
        net = _load(pretrained, built) or _of_bundle(
            name, alpha, resolution, variant, bundle_of(pretrained), pretrained
        )
        if num_classes is not None and num_classes != net.num_classes:
            net.reset_classifier(num_classes)
    return Backbone(net.train(), out_indices) if features_only else net.train()


Weights: TypeAlias = Bundle | str | Path | Literal[True]


def _load(weights: Weights, built: Callable[[int], Arch]) -> Net | None:
    """The network asked for with the weights of a file that has them under its own names, as `state_dict` gives them.

    None for any other.
    """
    if isinstance(weights, Bundle | bool) or hub.is_address(weights):
        return None
    if Path(weights).suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        return None
    tensors = open_foreign(str(weights)).tensors
    if not isinstance(tensors, Mapping) or "blocks.0.conv.conv.weight" not in tensors:
        return None
    classifier = tensors.get("classifier.weight", tensors.get("classifier.conv.weight"))
    card = card_of(built(0 if classifier is None else len(classifier)))
    expected = tensor_shapes(card)
    for tensor, shape in expected.items():
        if tensor not in tensors or tensors[tensor].shape != shape:
            has = f"not {list(tensors[tensor].shape)} as there" if tensor in tensors else "which isn't there"
            raise UserError(f"{weights}: not the weights of {card.arch.title}: {tensor} is {list(shape)}, {has}")
    return of_tensors(card, {tensor: tensors[tensor] for tensor in expected})


def bundle_of(weights: Weights) -> Bundle:
    """The bundle of what was given as weights, as `create` takes them. Raises `UserError`."""
    if isinstance(weights, Bundle):
        return weights
    if weights is True:
        raise UserError(
            "pretrained=True names no weights: give a bundle's folder, a file of weights, keras:v2-1.0-224, timm:NAME "
            f"or one of {', '.join(packaged())}; mobilenets.import_weights makes a bundle of others' weights"
        )
    if catalogue.is_name(str(weights)) or (Path(weights).is_file() and not is_file(Path(weights))):
        return foreign_bundle(open_foreign(str(weights)))
    return Bundle.load(find_bundle(Path(weights)))


def _of_bundle(
    name: str,
    alpha: float | None,
    resolution: int | None,
    variant: Variant | None,
    bundle: Bundle,
    where: Weights,
) -> Net:
    """The network of a bundle, which must be the one asked for, at another resolution perhaps."""
    card, wanted = bundle.card, zoo.network(name).name
    if variant is not None:
        raise UserError("a bundle's weights bring their own variant: leave out `variant`")
    if wanted != card.arch.name or alpha not in (None, card.arch.alpha):
        of = "the bundle" if isinstance(where, Bundle) else where
        raise UserError(f"{of} has weights of {card.arch.name!r} with alpha {card.arch.alpha:g}: ask for that network")
    if resolution is not None:
        sized = card.arch.replace(resolution=resolution, size=None)
        preprocess = dataclasses.replace(card.preprocess, resolution=resolution, size=None)
        bundle = dataclasses.replace(bundle, card=card.replace(arch=sized, preprocess=preprocess))
    return bundle.module()
