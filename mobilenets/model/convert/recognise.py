"""Which network foreign tensors are of, by names and shapes; and those tensors as ours."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch import spec, zoo
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import CLASSIFIER, Arch
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import one_line
from mobilenets.model.convert.naming import Naming, Style
from mobilenets.model.convert.namings import NAMINGS

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
# Widths that somebody published weights of.
ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.25, 1.3, 1.4)
OPTIONAL = ("scale", "norm.num_batches_tracked")
# What training leaves beside the weights.
LEFTOVERS = re.compile(
    r"(^|/)(global_step|beta[12]_power|.*(RMSProp|Momentum|Adam|Adagrad)(_\d+)?)$|_quant/|num_batches_tracked$"
    r"|^n_averaged$|^(aux[12]|AuxLogits)\."
)
SHOWN = 4  # tensors of each kind that an error names


@dataclass(frozen=True)
class Slot:
    """One of our tensors and where another library keeps it: its names there, the first that exists."""

    op: Op
    role: str
    theirs: tuple[str, ...]

    @property
    def ours(self) -> str:
        inside = "" if self.op.kind == "linear" or self.role.startswith("norm.") else "conv."
        return f"{self.op.name}.{inside}{self.role}"

    @property
    def shape(self) -> tuple[int, ...]:
        op = self.op
        if self.role == "weight":
            return op.weight_shape
        return () if self.role == "norm.num_batches_tracked" else (op.cout,)


def slots(naming: Naming, arch: Arch) -> list[Slot]:
    """Every tensor of `arch`, and its names in `naming`."""
    return slots_of(naming.style, naming.patterns(arch))


def slots_of(style: Style, patterns: Iterable[tuple[Op, str, str]]) -> list[Slot]:
    """The tensors of layers, each with its pattern filled in and that of its scale (see `naming.Naming.patterns`)."""
    out = []
    for op, pattern, scale in patterns:
        conv, _, norm = pattern.partition("|")
        roles = [(conv, "weight")] if conv else []
        roles += [(conv, "bias")] if op.bias else []
        roles += [(norm, role) for role in style.roles if role.startswith("norm.") and op.norm]
        roles += [(scale, "scale")] if scale else []
        out += [Slot(op, role, tuple(prefix + s for s in style.roles[role])) for prefix, role in roles]
    return out


def in_our_layout(array: Array, layout: str, depthwise: bool) -> Array:
    """A filter as [cout, cin/groups, K, K], whatever framework it comes from; anything else as it is."""
    if array.ndim == 2:
        return (array.T if layout == "hwio" else array)[:, :, None, None]
    if array.ndim == 4 and layout == "hwio":
        return array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    return array


def in_place(array: Array, layout: str, slot: Slot) -> Array:
    """A tensor of another library as the one of `slot`, if it is that; a matrix that reads a whole map is a filter."""
    laid = in_our_layout(array, layout, slot.op.kind == "depthwise")
    whole = array.ndim == 2 and slot.op.kind == "conv" and layout == "oihw" and array.size == math.prod(slot.shape)
    return laid.reshape(slot.shape) if whole else laid


@dataclass(frozen=True)
class Match:
    """How tensors fit a network under a naming; `told`: it is one that was asked for.

    `pooled`: those up to the pooling all fit, whatever follows it.
    """

    naming: Naming
    arch: Arch
    found: Mapping[Slot, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]
    pooled: bool
    told: bool = False

    @property
    def exact(self) -> bool:
        return not (self.missing or self.extra or self.misshapen)

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    def __str__(self) -> str:
        return f"{self.arch.name.upper()} at alpha {self.arch.alpha:g} in {self.naming.origin}'s names"

    @property
    def complaint(self) -> str:
        kinds = (("missing", self.missing), ("extra", self.extra), ("misshapen", self.misshapen))
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(one_line, names[:SHOWN])) + more


def match(naming: Naming, arch: Arch, tensors: Arrays, wanted: Sequence[Slot] | None = None) -> Match:
    """Compare `tensors` with what `arch` needs, or with other `wanted` ones, by name and shape."""
    found: dict[Slot, str] = {}
    missing, misshapen = [], []
    pooled = True
    for slot in slots(naming, arch) if wanted is None else wanted:
        name = next((n for n in slot.theirs if n in tensors), None)
        if name is None:
            if slot.role not in OPTIONAL:
                missing.append(slot.theirs[0])
                pooled &= slot.op.name.startswith("head.")
            continue
        found[slot] = name
        shape = in_place(tensors[name], naming.style.layout, slot).shape
        if shape != slot.shape:
            misshapen.append(f"{name} {_x(shape)} instead of {_x(slot.shape)}")
            pooled &= slot.op.name.startswith("head.")
    used = set(found.values())
    extra = tuple(n for n in tensors if n not in used and not LEFTOVERS.search(n))
    return Match(naming, arch, found, tuple(missing), extra, tuple(misshapen), pooled)


def check_strides(m: Match, strides: Mapping[str, int]) -> None:
    """`UserError` where a graph strides otherwise than the network: `strides` by names of convolutions' weights."""
    for slot, name in m.found.items():
        if strides.get(name, slot.op.stride) != slot.op.stride:
            raise UserError(f"{name} is of a convolution of stride {strides[name]}, in {m} of {slot.op.stride}")


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def variants(name: str, alpha: float, num_classes: int, **options: Any) -> Iterator[Arch]:
    """A network at a width, under each convention that gives other channels."""
    network = zoo.network(name)
    seen = set()
    for convention, keep_stem in itertools.product(spec.CONVENTIONS, (False, True)):
        arch = spec.scale(network, alpha, None, num_classes, convention=convention, keep_stem=keep_stem, **options)
        if (arch.rows, arch.head) not in seen:
            seen.add((arch.rows, arch.head))
            yield arch


def with_classifier(m: Match, tensors: Arrays) -> Match:
    """A body's `m` with the one linear layer that is left, whatever its name, for the classifier.

    Of several, the library's own classifier.
    """
    style, own = m.naming.style, m.naming.layers["classifier"]
    layers: dict[str, dict[str, str]] = {}
    for name in m.extra:
        for role in ("weight", "bias"):
            for suffix in style.roles[role]:
                if name.endswith(suffix):
                    layers.setdefault(name.removesuffix(suffix), {})[role] = name
    alone = len(layers) == 1 and sum(map(len, layers.values())) == len(m.extra)
    layer = own if own in layers else next(iter(layers)) if alone else None
    if layer is None or "weight" not in layers[layer]:
        return m
    roles, arch = layers[layer], m.arch
    shape, bias = in_our_layout(tensors[roles["weight"]], style.layout, False).shape, roles.get("bias")
    if shape[1:] != (arch.features, 1, 1) or not shape[0] or (bias and tensors[bias].shape != shape[:1]):
        return m
    op = arch.replace(num_classes=shape[0]).graph.op(CLASSIFIER)
    found = {**m.found, **{Slot(op, role, (name,)): name for role, name in roles.items()}}
    extra = tuple(n for n in m.extra if n not in roles.values())
    return dataclasses.replace(m, arch=arch.replace(num_classes=shape[0]), found=found, extra=extra)


def identify(tensors: Arrays, name: str | None = None, alpha: float | None = None, body_only: bool = False) -> Match:
    """The network that `tensors` are of, by names and shapes; `name` and `alpha` are what they should be, if known.

    `body_only`: whatever follows its pooling is left out. Raises `UserError` where they aren't exactly any network's:
    what is missing, extra or misshapen, and what they look like instead.
    """
    wanted = None if name is None else zoo.network(name).name

    def fits(of_its_width: bool) -> Iterator[Match]:
        for body in _bodies(tensors, alpha, of_its_width):
            m = dataclasses.replace(body, extra=()) if body_only else with_classifier(body, tensors)
            yield dataclasses.replace(m, told=wanted in (None, m.arch.name) and alpha in (None, m.arch.alpha))

    exact = next((m for m in fits(of_its_width=True) if m.exact and m.told), None)
    if exact is not None:
        return exact
    tried = [*fits(of_its_width=False)]
    if not tried:
        raise UserError(f"no network here has tensors like these: {_some(sorted(tensors)) or 'there are none'}")
    likely = min(tried, key=lambda m: m.faults)
    told = [m for m in tried if m.told]
    best = min(told, key=lambda m: m.faults) if told else likely
    bodies = [m for m in told or tried if not (m.missing or m.misshapen) and m.extra]
    if bodies and max(tensors[n].ndim for n in bodies[0].extra) == 2:
        best = min(bodies, key=lambda m: m.faults)
        more = _some([f"{n} {_x(tensors[n].shape)}" for n in sorted(best.extra)])
        raise UserError(
            f"this is {best}, and more than a linear layer of its {best.arch.features} features follows ({more}): "
            "import its body with --body-only, and fine-tune that (fit --init)"
        )
    looks = f"this is {likely}" if likely.exact else f"the nearest network is {likely} ({likely.complaint})"
    if (name or alpha) and told:
        raise UserError(f"the weights don't fit {best} ({best.complaint}); {looks}")
    raise UserError(f"the weights fit {'no network' if not (name or alpha) else 'none that was asked for'}; {looks}")


def widths(alpha: float | None, name: str) -> Sequence[float]:
    """Those that somebody may have weights of; MobileNets' are trained at widths beside their papers'."""
    known = ALPHAS if name in zoo.NETWORKS else zoo.network(name).alphas
    return known if alpha is None else (alpha, *(a for a in known if a != alpha))


def _bodies(tensors: Arrays, told: float | None, of_its_width: bool) -> Iterator[Match]:
    """How `tensors` fit every network of a naming that has its first layer among them, up to the classifier.

    `of_its_width`: those alone whose first layer has as many channels as theirs.
    """
    for naming in NAMINGS:
        stem = naming.layers["stem"].partition("|")[0].format(i=0)
        first = next((stem + suffix for suffix in naming.style.roles["weight"] if stem + suffix in tensors), None)
        if first is None:
            continue
        channels = in_our_layout(tensors[first], naming.style.layout, False).shape[:1]
        for name in naming.networks:
            for alpha in widths(told, name):
                archs = [a for a in variants(name, alpha, 0) if not of_its_width or _first(a) == channels]
                matches = [m for arch in archs for m in _matches(naming, arch, tensors)]
                yield from (m for m in matches if len(m.missing) < 10 * len(m.found))  # else a name or two is alike
                if matches and all(len(m.missing) > len(m.found) for m in matches):
                    break  # its names are another's, at any width


def _first(arch: Arch) -> tuple[int]:
    """The channels of a network's first layer."""
    return (arch.rows[0].ops(3, arch.scaling)[0].cout,)


def _matches(naming: Naming, arch: Arch, tensors: Arrays) -> Iterator[Match]:
    """How `tensors` fit a network, and how without its layers after the pooling where somebody has replaced those."""
    m = match(naming, arch, tensors)
    replaced = _head_replaced(m)
    if not replaced:
        yield m
    if m.pooled and (m.missing or m.misshapen or replaced):
        yield match(naming, arch.replace(head=()), tensors)


def _head_replaced(m: Match) -> bool:
    """Whether somebody else's layers are where a library has its layers after the pooling, all in one module.

    What is between theirs, the weights don't show.
    """
    own = m.naming.layers["classifier"]
    joint = bool(m.arch.head) and m.naming.layers["head"].split(".")[0] == own.split(".")[0]
    return joint and bool(m.extra) and not any(own + w in m.extra for w in m.naming.style.roles["weight"])


def convert(m: Match, tensors: Arrays) -> dict[str, Array]:
    """`tensors` under our names and in our layout, float32."""
    out: dict[str, Array] = {}
    scales: dict[Op, Array] = {}
    for slot, name in m.found.items():
        array = in_place(np.asarray(tensors[name]), m.naming.style.layout, slot)
        if slot.role == "scale":
            scales[slot.op] = array.astype(np.float32)
        elif slot.role == "norm.num_batches_tracked":
            out[slot.ours] = np.asarray(array, np.int64)
        else:
            array = array[:, :, 0, 0] if slot.op.kind == "linear" and array.ndim == 4 else array
            out[slot.ours] = np.ascontiguousarray(array, np.float32)
    for op, scale in scales.items():  # what is multiplied after a layer may as well be multiplied in it
        if op.norm:
            for role in ("weight", "bias"):
                out[f"{op.name}.norm.{role}"] = out[f"{op.name}.norm.{role}"] * scale
        else:
            out[f"{op.name}.conv.weight"] = out[f"{op.name}.conv.weight"] * scale[:, None, None, None]
    for op in {slot.op for slot in m.found}:
        if op.norm:
            out.setdefault(f"{op.name}.norm.num_batches_tracked", np.asarray(0))
        if op.kind == "linear":
            out.setdefault(f"{op.name}.bias", np.zeros(op.cout, np.float32))
    return out
