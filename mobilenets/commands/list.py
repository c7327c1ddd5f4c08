"""`mobilenets list`: every network and detector that somebody published an accuracy of. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mobilenets.arch import cost, published, zoo
from mobilenets.arch.detectors import counting
from mobilenets.arguments import checked
from mobilenets.console import Notebook
from mobilenets.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

SortKey = Literal["name", "top1", "macs", "params"]


@dataclass(frozen=True)
class Entry(Notebook):
    """A network as published. `imagenet_top1` in percent, None where none is known here; bytes at 32 and 8 bits."""

    arch: str
    alpha: float
    resolution: int
    imagenet_top1: float | None
    macs: int
    params: int
    weight_bytes: int
    weight_bytes_int8: int
    source: str


@dataclass(frozen=True)
class Weight(Notebook):
    """Published weights. Percent of ImageNet, None where nobody says; bytes in 32 bits; the file, if it is here."""

    name: str
    arch: str
    alpha: float
    resolution: int
    imagenet_top1: float | None
    macs: int
    params: int
    bytes: int
    licence: str
    path: str | None


@dataclass(frozen=True)
class DetectorEntry(Notebook):
    """A detector as published. `coco_map` in percent, None where nobody published one; `classes` has the background."""

    detector: str
    backbone: str
    alpha: float
    resolution: int
    classes: int
    coco_map: float | None
    macs: int
    params: int
    weight_bytes: int
    weight_bytes_int8: int
    source: str


@dataclass(frozen=True)
class Listing(Notebook):
    """What was listed, in the order asked for."""

    entries: tuple[Any, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(e) for e in self.entries]


@dataclass(frozen=True)
class Weights(Listing):
    """Published weights, in the order asked for."""

    entries: tuple[Weight, ...]

    def __rich__(self) -> RenderableType:
        from mobilenets.console import many, megabytes, table

        here = sum(e.path is not None for e in self.entries)
        t = table(
            f"{many(len(self.entries), 'network')} with published weights, {here} of them here",
            ["weights", "network", "input", "top-1 %", "macs M", "MB", "licence", "here"],
            left=("weights", "network", "licence"),
        )
        for column in (t.columns[0], t.columns[1]):
            column.no_wrap = True
        for e in self.entries:
            top1 = "" if e.imagenet_top1 is None else f"{e.imagenet_top1:.1f}"
            t.add_row(
                e.name, f"{e.arch} {e.alpha:g}", str(e.resolution), top1, f"{e.macs / 1e6:,.1f}", megabytes(e.bytes),
                e.licence, "✓" if e.path else "",
            )  # fmt: skip
        t.caption = (
            "top-1: of ImageNet, as published with them; mobilenets fetch NAME, import NAME, create(pretrained=NAME)"
        )
        return t


@dataclass(frozen=True)
class Catalogue(Listing):
    """Networks, in the order asked for."""

    entries: tuple[Entry, ...]

    def __rich__(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(
            f"{len(self.entries)} networks, as published; 1000 classes",
            ["network", "alpha", "input", "top-1 %", "macs M", "params M", "MB", "MB int8", "source"],
            left=("network", "source"),
        )
        for column in (t.columns[0], t.columns[-1]):
            column.no_wrap = True
        for e in self.entries:
            t.add_row(
                e.arch,
                f"{e.alpha:g}",
                str(e.resolution),
                "" if e.imagenet_top1 is None else f"{e.imagenet_top1:.1f}",
                f"{e.macs / 1e6:,.1f}",
                f"{e.params / 1e6:.2f}",
                megabytes(e.weight_bytes),
                megabytes(e.weight_bytes_int8),
                e.source,
            )
        t.caption = (
            "top-1: ImageNet's, published, never ours; macs and params: counted, exact; MB: weights alone\n"
            f"detectors ({', '.join(counting.NAMES)}): mobilenets list --detectors"
        )
        return t


@dataclass(frozen=True)
class Detectors(Listing):
    """Detectors, in the order asked for."""

    entries: tuple[DetectorEntry, ...]

    def __rich__(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(
            f"{len(self.entries)} detectors, as published",
            ["detector", "on", "input", "classes", "mAP %", "macs M", "params M", "MB", "MB int8", "source"],
            left=("detector", "on", "source"),
        )
        for column in (t.columns[0], t.columns[1], t.columns[-1]):
            column.no_wrap = True
        for e in self.entries:
            t.add_row(
                e.detector, f"{e.backbone} {e.alpha:g}", str(e.resolution), str(e.classes),
                "" if e.coco_map is None else f"{e.coco_map:.1f}", f"{e.macs / 1e6:,.0f}", f"{e.params / 1e6:.2f}",
                megabytes(e.weight_bytes), megabytes(e.weight_bytes_int8), e.source,
            )  # fmt: skip
        t.caption = (
            "mAP: COCO's, published, never ours; classes: with the background; macs and params: counted, exact;\n"
            "any of them on any network: mobilenets cost DETECTOR --backbone NETWORK"
        )
        return t


def catalogue() -> list[Entry]:
    """Every published width and resolution of every network; one without a published accuracy at its own."""
    entries = []
    for network in zoo.EVERY.values():
        for alpha in network.alphas:
            for resolution in network.resolutions:
                top1 = published.TOP1.get(network.name, {}).get(alpha, {}).get(resolution)
                if top1 is None and network.name in published.TOP1:
                    continue
                c = cost.count(zoo.arch(network.name, alpha, resolution))
                sizes = (c.weight_bytes(32), c.weight_bytes(8))
                entries.append(Entry(network.name, alpha, resolution, top1, c.macs, c.params, *sizes, network.source))
    return entries


@checked
def list_networks(
    name: str | None = None,
    *,
    sort: SortKey = "name",
    min_top1: float = 0.0,
    max_macs_m: float | None = None,
    max_params_m: float | None = None,
    weights: bool = False,
    detectors: bool = False,
) -> Catalogue | Weights | Detectors:
    """Every network there is, with its published accuracy and its exact cost; or every set of published weights.

    Parameters
    ----------
    name
        Only networks whose name has this in it: v1, v3, small, hybrid, ...; of a detector, or of the network it is on.
    sort
        By name, top1 (best first; of detectors, mAP), macs or params (least first).
    min_top1
        Only networks of at least this published ImageNet top-1, percent; of detectors, COCO mAP.
    max_macs_m
        Only networks of at most so many million mult-adds.
    max_params_m
        Only networks of at most so many million trainable parameters.
    weights
        What `import`, `create` and `fetch` get by name instead: names, accuracy, size, licence, what is here already.
    detectors
        Detectors instead: on what, at which resolution, with what mAP they were published.

    Returns
    -------
    Catalogue, Weights or Detectors
        `entries`: each network's name, alpha, resolution in pixels, published top-1 in percent (None where there is
        none), macs, params, bytes of its weights in 32 and in 8 bits, and the paper.

    Raises
    ------
    UserError
        Where no network is called so.

    Examples
    --------
    >>> import mobilenets
    >>> best = mobilenets.list_networks("v2", sort="top1", max_macs_m=100).entries[0]
    >>> best.arch, best.alpha, best.resolution, best.imagenet_top1
    ('v2', 0.5, 224, 65.4)
    """
    if weights and detectors:
        raise UserError("list takes --weights or --detectors, not both: no detector's weights can be had by name")
    found: Sequence[Entry | Weight | DetectorEntry] = (
        _weights(name) if weights else _detectors(name) if detectors else _networks(name)
    )
    if not found:
        raise unknown("detector" if detectors else "network", name or "", counting.NAMES if detectors else zoo.EVERY)
    entries = [
        e
        for e in found
        if _score(e) >= min_top1
        and (max_macs_m is None or e.macs <= max_macs_m * 1e6)
        and (max_params_m is None or e.params <= max_params_m * 1e6)
    ]
    if sort == "top1":
        entries.sort(key=lambda e: -_score(e))
    elif sort != "name":
        entries.sort(key=lambda e: getattr(e, sort))
    if weights:
        return Weights(tuple(e for e in entries if isinstance(e, Weight)))
    if detectors:
        return Detectors(tuple(e for e in entries if isinstance(e, DetectorEntry)))
    return Catalogue(tuple(e for e in entries if isinstance(e, Entry)))


def _score(e: Entry | Weight | DetectorEntry) -> float:
    return (e.coco_map if isinstance(e, DetectorEntry) else e.imagenet_top1) or 0.0


def _detectors(name: str | None) -> list[DetectorEntry]:
    """Published detectors; `name` may be their networks' too."""
    entries = []
    for d in published.DETECTORS:
        if not name or name in d.name or zoo.canonical(name) in d.backbone:
            tail = d.reduced_tail or None
            c = counting.count(d.name, d.backbone, d.alpha, d.resolution, d.classes, reduced_tail=tail)
            sizes = c.weight_bytes(32), c.weight_bytes(8)
            entries.append(
                DetectorEntry(
                    d.name, d.backbone, d.alpha, d.resolution, d.classes, d.coco_map, c.macs, c.params, *sizes, d.source
                )
            )  # fmt: skip
    return entries


def _weights(name: str | None) -> list[Weight]:
    """Published weights; `name` may be the publisher's too."""
    from mobilenets.model.convert import catalogue, fetched

    entries = []
    for w in catalogue.weights().values():
        if not name or name in w.name or zoo.canonical(name) in w.arch:
            c = cost.count(zoo.arch(w.arch, w.alpha, w.resolution))
            path = fetched.located(w)
            entries.append(
                Weight(
                    w.name, w.arch, w.alpha, w.resolution, w.top1, c.macs, c.params, w.size, w.licence,
                    str(path) if path else None,
                )
            )  # fmt: skip
    return entries


def _networks(name: str | None) -> list[Entry]:
    return [e for e in catalogue() if not name or zoo.canonical(name) in e.arch]
