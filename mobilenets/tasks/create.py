"""A network or a detector by its name: what `mobilenets.create` gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, overload

from mobilenets.arch import spec, zoo
from mobilenets.arch.detectors import FAMILIES, PYRAMIDS, detector_arch
from mobilenets.arch.spec import Variant
from mobilenets.arguments import StrPath, checked
from mobilenets.errors import UserError
from mobilenets.model import create as networks
from mobilenets.model.bundle import Bundle
from mobilenets.model.net import Backbone, Net
from mobilenets.tasks.detect import module, two_stage_module
from mobilenets.tasks.detect.config import DetectorFamily
from mobilenets.tasks.detect.module import Detector

DETECTORS = (*FAMILIES, *PYRAMIDS)
COCO_CLASSES = 91


@overload
def create(
    name: DetectorFamily,
    *,
    backbone: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    pretrained: Bundle | StrPath | bool | None = None,
    features_only: Literal[False] = False,
    out_indices: None = None,
    variant: Variant | None = None,
) -> Detector: ...
@overload
def create(
    name: str,
    *,
    alpha: float | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    pretrained: Bundle | StrPath | bool | None = None,
    features_only: Literal[False] = False,
    out_indices: None = None,
    variant: Variant | None = None,
) -> Net: ...
@overload
def create(
    name: str,
    *,
    alpha: float | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    pretrained: Bundle | StrPath | bool | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    variant: Variant | None = None,
) -> Backbone: ...
@checked
def create(
    name: str,
    *,
    backbone: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    pretrained: Bundle | StrPath | bool | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    variant: Variant | None = None,
) -> Net | Backbone | Detector:
    """A network as a `torch.nn.Module`, in training mode: images [N, 3, H, W], as `preprocess` makes them, to logits.

    A detector, as torchvision's are called: a list of images [3, H, W], floats from 0 to 1, with a list of targets to a
    dict of losses; in eval mode without targets to a list of dicts of boxes, labels and scores.

    Parameters
    ----------
    name
        v1, v2, v3-large, ... (`mobilenets.list_networks` has them all), "mobilenet_v2" and such too. Of detectors: ssd,
        ssdlite, ssdlite-torchvision, ssd-fpnlite, faster-rcnn-fpn, mask-rcnn.
    backbone
        The network that a detector stands on; the one it was published with, if left out.
    alpha
        Width multiplier, above 0 and at most 2 (V1 paper, section 3.3); 1, or that of the weights, if left out.
    resolution
        Input height and width in pixels, 32 or more; the one the network's paper leads with, or that of the weights, if
        left out. The network takes images of other sizes too.
    num_classes
        Logits that it gives, 1000, or those of the weights, if left out; 0: features [N, num_features] instead. Another
        number than that of the weights gets a new classifier. Of a detector with the background, 91 if left out, as
        torchvision counts.
    pretrained
        Where its weights are: a `Bundle` or its folder, a run's, a file of weights (as `import_weights` takes them),
        published weights by name (keras:v2-1.0-224, torchvision:mobilenet_v2, ..., fetched once), a bundle of the Hub
        (hf://user/name), or the name of a network that comes with the package. Random, from torch's global generator,
        if left out. A detector starts from another of its kind, or from a classifier's layers.
    features_only
        The maps instead of logits, as detectors and segmenters take them.
    out_indices
        Which maps, from 0 for the one at stride 2; all if left out.
    variant
        How it is built where it isn't as its paper has it.

    Returns
    -------
    Net, Backbone or Detector
        Logits [N, num_classes]; with `features_only`, a list of maps [N, C, H/2, W/2] to [N, C, H/32, W/32]. Both have
        `card`, `preprocess`, `feature_info` and `num_features`, under the names and with the meaning of timm's.

    Raises
    ------
    UserError
        For an unknown network (it suggests the nearest), a width or resolution that can't be, weights that aren't there
        or are of another network.

    Examples
    --------
    >>> import mobilenets, torch
    >>> net = mobilenets.create("v2", alpha=0.5, resolution=160, num_classes=10)
    >>> net(torch.zeros(2, 3, 160, 160)).shape, net.num_features
    (torch.Size([2, 10]), 1280)
    >>> maps = mobilenets.create("v3-small", features_only=True, out_indices=(2, 3, 4))
    >>> [tuple(m.shape[1:]) for m in maps(torch.zeros(1, 3, 224, 224))], maps.feature_info.reduction()
    ([(24, 28, 28), (48, 14, 14), (576, 7, 7)], [8, 16, 32])
    >>> trained = mobilenets.create("v1-cifar", pretrained="cifar10-v1-0.25", num_classes=3)
    >>> trained.card.arch.title, trained.num_classes
    ('v1-cifar 0.25-32', 3)
    >>> found = mobilenets.create("ssdlite", backbone="v3-small", num_classes=3).eval()([torch.rand(3, 200, 300)])
    >>> sorted(found[0]), found[0]["boxes"].shape[1]
    (['boxes', 'labels', 'scores'], 4)
    """
    if name not in DETECTORS:
        if backbone is not None:
            raise UserError(f"{name} is no detector: a backbone is for {', '.join(DETECTORS)}")
        return networks.create(
            name, alpha=alpha, resolution=resolution, num_classes=num_classes, pretrained=pretrained,
            features_only=features_only, out_indices=out_indices, variant=variant,
        )  # fmt: skip
    if features_only or out_indices is not None:
        raise UserError("a detector's maps are its backbone's: create that with features_only=True")
    if num_classes is not None and num_classes < 2:
        raise UserError(f"num_classes has the background in: 2 or more for a detector, not {num_classes}")
    if pretrained is None or pretrained is False:
        classes = COCO_CLASSES if num_classes is None else num_classes
        if name in PYRAMIDS and variant is None:
            return two_stage_module.fresh(name, backbone, 1.0 if alpha is None else alpha, resolution, classes).train()
        if name in PYRAMIDS:
            raise UserError(f"{name} is built as torchvision builds it: leave out `variant`")
        arch = detector_arch(name, backbone, 1.0 if alpha is None else alpha, resolution)
        if variant is not None:
            size = arch.input_size
            arch = spec.scale(zoo.network(arch.name), arch.alpha, size, 0, **dataclasses.asdict(variant))
        return module.fresh(arch.replace(head=()), name, classes).train()
    if variant is not None:
        raise UserError("a bundle's weights bring their own variant: leave out `variant`")
    bundle = networks.bundle_of(pretrained)
    has, wanted = bundle.card.arch, zoo.network(backbone).name if backbone else None
    if wanted not in (None, has.name) or alpha not in (None, has.alpha):
        raise UserError(f"the weights are of {has.name!r} with alpha {has.alpha:g}: ask for that backbone")
    if name in PYRAMIDS:
        return two_stage_module.of_bundle(bundle, name, resolution, num_classes).train()
    return module.of_bundle(bundle, name, resolution, num_classes).train()
