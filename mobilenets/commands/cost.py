"""`mobilenets cost`: what a network costs."""

from __future__ import annotations

import dataclasses

from mobilenets.arch import zoo
from mobilenets.arch.cost import Cost, count
from mobilenets.arguments import checked
from mobilenets.commands.options import NumClasses
from mobilenets.errors import UserError
from mobilenets.model.convert.foreign_cost import ForeignCost, count_foreign, is_foreign


@checked
def cost(
    arch: str,
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    num_classes: NumClasses = 1000,
    layers: bool = False,
) -> Cost | ForeignCost:
    """What a network costs: macs, additions, parameters, weight bytes, peak activation memory.

    Parameters
    ----------
    arch
        Network: v1, v2, v3-large, ...; `mobilenets list` shows them all. Others' are counted too, by running them:
        torchvision:vgg16, timm:efficientnet_b0.
    alpha
        Width multiplier, above 0 and at most 2.
    resolution
        Input height and width in pixels, 32 or more; the one the network's paper leads with, if left out.
    num_classes
        Outputs of the classifier.
    layers
        Print a row per layer too.

    Returns
    -------
    Cost
        Exact counts: `macs` (multiply-adds), `adds`, `params` (trainable), `weights`, `weight_bytes(bits)`, the peak of
        the activations in elements; `rows` has them by layer, shapes as (channels, height, width). A `ForeignCost` of
        others' networks.

    Raises
    ------
    UserError
        For an unknown network (it suggests the nearest), or a width or resolution that can't be.

    Examples
    --------
    V1's paper prints 569 million mult-adds and 4.2 million parameters (Howard and others 2017, table 8):

    >>> import mobilenets
    >>> counted = mobilenets.cost("v1")
    >>> counted.macs, counted.params
    (568740352, 4231976)
    """
    if is_foreign(arch):
        if alpha != 1.0 or num_classes != 1000 or layers:
            raise UserError(f"{arch} is counted as it is; of the options, only --resolution applies")
        return count_foreign(arch, resolution)
    return dataclasses.replace(count(zoo.arch(arch, alpha, resolution, num_classes)), show_layers=layers)
