"""`mobilenets cost`: what a network costs."""

from __future__ import annotations

import dataclasses

from mobilenets.arch import zoo
from mobilenets.arch.cost import Cost, count
from mobilenets.arch.detectors import counting as detectors
from mobilenets.arguments import checked
from mobilenets.commands.options import NumClasses
from mobilenets.errors import UserError, unknown
from mobilenets.model.convert.foreign_cost import ForeignCost, count_foreign, is_foreign


@checked
def cost(
    arch: str,
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    num_classes: NumClasses | None = None,
    backbone: str | None = None,
    proposals: int | None = None,
    layers: bool = False,
) -> Cost | ForeignCost:
    """What a network or a detector costs: macs, additions, parameters, weight bytes, peak activation memory.

    Parameters
    ----------
    arch
        Network: v1, v2, v3-large, ...; `mobilenets list` shows them all. A detector: ssd, ssdlite, ssdlite-torchvision,
        ssd-fpnlite, faster-rcnn, faster-rcnn-fpn, mask-rcnn. Others' are counted too, by running them:
        torchvision:vgg16, timm:efficientnet_b0.
    alpha
        Width multiplier, above 0 and at most 2.
    resolution
        Input height and width in pixels, 32 or more; the one the network's paper leads with, if left out.
    num_classes
        Outputs of the classifier, 1000 if left out. Of a detector with the background counted: 91 if left out, which is
        COCO as most train on it (ids up to 90); 81 is its 80 kinds and the background.
    backbone
        Of a detector: the network it stands on; the one it was published with, if left out.
    proposals
        Of a two-stage detector: how many boxes it looks at again; as many as those who published it, if left out.
    layers
        Print a row per layer too.

    Returns
    -------
    Cost
        Exact counts: `macs` (multiply-adds), `adds`, `params` (trainable), `weights`, `weight_bytes(bits)`, the peak of
        the activations in elements; `rows` has them by layer, shapes as (channels, height, width). Of a detector also
        `parts()`, macs and parameters of its backbone, its extra maps, its heads. A `ForeignCost` of others' networks.

    Raises
    ------
    UserError
        For an unknown network (it suggests the nearest), or a width, a resolution or options that can't be.

    Examples
    --------
    V1's paper prints 569 million mult-adds and 4.2 million parameters (Howard and others 2017, table 8):

    >>> import mobilenets
    >>> counted = mobilenets.cost("v1")
    >>> counted.macs, counted.params
    (568740352, 4231976)

    The same paper's SSD300, 1.2 billion and 6.8 million (table 13):

    >>> counted = mobilenets.cost("ssd", backbone="v1", resolution=300, num_classes=91)
    >>> counted.macs, counted.params
    (1237129408, 6819839)
    """
    if arch in detectors.NAMES:
        classes = detectors.COCO_CLASSES if num_classes is None else num_classes
        made = detectors.count(arch, backbone, alpha, resolution, classes, proposals)
        return dataclasses.replace(made, show_layers=layers)
    if backbone is not None or proposals is not None:
        raise UserError(f"{arch} is no detector: --backbone and --proposals are for {', '.join(detectors.NAMES)}")
    if is_foreign(arch):
        if alpha != 1.0 or num_classes is not None or layers:
            raise UserError(f"{arch} is counted as it is; of the options, only --resolution applies")
        return count_foreign(arch, resolution)
    if zoo.canonical(arch) not in zoo.EVERY:
        raise unknown("arch", arch, (*zoo.EVERY, *detectors.NAMES))
    counted = count(zoo.arch(arch, alpha, resolution, 1000 if num_classes is None else num_classes))
    return dataclasses.replace(counted, show_layers=layers)
