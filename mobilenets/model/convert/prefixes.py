"""What wrappers put before every name of a network's tensors, and what they hold beside it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mobilenets.arch import zoo
from mobilenets.model.convert.naming import PYTORCH, Naming
from mobilenets.model.convert.namings import NAMINGS
from mobilenets.model.convert.recognise import Arrays

# Modules with weights that belong to a training, not to the network that it trains.
_TRAINING = re.compile(r"(^|[./_])(criterion|loss)", re.IGNORECASE)
_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
_FEATURES = "features."  # torchvision's module of everything before the pooling, which people take out of its network

_OWN = {name.partition("-")[0] for name in zoo.NETWORKS}
# MobileNets' first: the others' first layers have names that are the ends of many.
_GROUPS = [[n for n in NAMINGS if (n.family in _OWN) is own] for own in (True, False)]


def unprefixed(tensors: Arrays) -> Arrays:
    """`tensors` without what stands before all names of the network: "_orig_mod.", "model.", "backbone.".

    What is beside the network is left out (a loss with weights, say), but for the layers beside one that has no
    classifier of its own: one of them may be that.
    """
    places: set[tuple[str, str]] = set()
    for namings in _GROUPS:
        places = places or {place for naming in namings for place in _stems(naming, tensors)}
    places = {p for p in places if not p[1]} or places
    averaged = {p for p in places if _EMA.search(p[0])}
    if averaged and ("", "") not in places:  # beside the weights they are the average of: they are what was scored
        places = averaged
    if ("", "") in places or len(places) != 1:
        return tensors
    ((prefix, before),) = places
    inside = {before + name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
    if any(naming.layers["classifier"] + w in inside for naming in NAMINGS for w in naming.style.roles["weight"]):
        return inside
    return {**_layers({name: a for name, a in tensors.items() if not name.startswith(prefix)}), **inside}


def _stems(naming: Naming, tensors: Arrays) -> Iterator[tuple[str, str]]:
    """Where first layers of `naming` are: (what is before the network's names, what is missing there)."""
    stem = naming.layers["stem"].partition("|")[0].format(i=0)
    channels = 1 if naming.style is PYTORCH else 2
    for suffix in naming.style.roles["weight"]:
        for missing in ("", _FEATURES) if stem.startswith(_FEATURES) else ("",):
            end = (stem + suffix).removeprefix(missing)
            for name, a in tensors.items():
                prefix = name.removesuffix(end)
                if name.endswith(end) and prefix[-1:] in ("", ".", "/") and a.ndim == 4 and a.shape[channels] == 3:
                    yield prefix, missing


def _layers(tensors: Arrays) -> Arrays:
    """Those of `tensors` that are a layer's: matrices and filters, what belongs to them, and statistics."""
    layers = {n.rpartition(".")[0] for n, a in tensors.items() if a.ndim > 1 or n.endswith("running_var")}
    return {n: a for n, a in tensors.items() if n.rpartition(".")[0] in layers and not _TRAINING.search(n)}
