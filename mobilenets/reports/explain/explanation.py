"""What there is to say of one network, found when asked for. No torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets.arch import zoo
from mobilenets.arch.cost import Cost, CostRow
from mobilenets.arch.spec import Arch
from mobilenets.reports.explain import facts
from mobilenets.reports.explain.facts import Head, Knob, Share
from mobilenets.reports.explain.ideas import Idea, ideas_of
from mobilenets.reports.explain.parts import Part, Shape, distinct, every_part, merged


@dataclass(frozen=True)
class Explanation:
    """An Arch explained; `all_blocks` draws every block in the terminal, `html` is where the page was written."""

    cost: Cost
    all_blocks: bool = False
    html: Path | None = None

    @property
    def arch(self) -> Arch:
        return self.cost.arch

    @property
    def source(self) -> str:
        return zoo.network(self.arch.name).source

    @functools.cached_property
    def every_part(self) -> tuple[Part, ...]:
        """Each block by itself, then the tail."""
        return every_part(self.cost)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """`every_part` with neighbours that are the same drawn once."""
        return merged(self.every_part)

    @functools.cached_property
    def distinct(self) -> tuple[Part, ...]:
        """The blocks that differ, each once, wherever it comes again."""
        return distinct(self.parts)

    @property
    def example(self) -> Part | None:
        """The block that takes the most macs of those about which V1's formula says something."""
        some = [p for p in self.distinct if p.against and p.against.predicted]
        return max(some, key=lambda p: p.times * p.macs, default=None)

    @property
    def standard_macs(self) -> int:
        """The network's macs if every block were one standard convolution; attention, pooling and head as they are."""
        return sum((p.against and p.against.standard_macs) or p.macs for p in self.every_part)

    @functools.cached_property
    def by_type(self) -> tuple[Share, ...]:
        return facts.by_type(self.cost)

    @functools.cached_property
    def by_map(self) -> tuple[Share, ...]:
        return facts.by_map(self.cost)

    @property
    def heaviest(self) -> tuple[CostRow, ...]:
        return facts.heaviest(self.cost)

    @property
    def why(self) -> tuple[str, ...]:
        return facts.why(self.cost)

    @functools.cached_property
    def knobs(self) -> tuple[Knob, ...]:
        return facts.knobs(self.cost)

    @property
    def last_map(self) -> Shape:
        return facts.last_map(self.arch)

    @property
    def head(self) -> Head | None:
        return facts.head(self.arch)

    @functools.cached_property
    def receptive_field(self) -> int:
        return facts.receptive_field(self.arch)

    @property
    def sees_all_from(self) -> int | None:
        return facts.sees_all_from(self.arch)

    @functools.cached_property
    def ideas(self) -> tuple[Idea, ...]:
        return ideas_of(self.arch, {p.kind for p in self.parts})

    def to_json(self) -> dict[str, Any]:
        a, c, head = self.arch, self.cost, self.head

        def shares(some: Sequence[Share]) -> list[dict[str, Any]]:
            return [{"label": s.label, "macs": s.macs, "params": s.params} for s in some]

        return {
            "arch": a.name,
            "alpha": a.alpha,
            "resolution": a.resolution,
            "classes": a.num_classes,
            "source": self.source,
            "macs": c.macs,
            "weights": c.weights,
            "trainable_params": c.params,
            "standard_macs": self.standard_macs,
            "parts": [p.to_json() for p in self.parts],
            "by_type": shares(self.by_type),
            "by_map": shares(self.by_map),
            "heaviest_layers": [dataclasses.asdict(r) for r in self.heaviest],
            "why": list(self.why),
            "knobs": [dataclasses.asdict(k) for k in self.knobs],
            "head": head
            and dataclasses.asdict(head)
            | {"pooled_weights": head.pooled_weights, "flattened_weights": head.flattened_weights},
            "peak_activation_elements": c.peak_activation_elements,
            "peak_activation_elements_blockwise": c.peak_activation_elements_blockwise,
            "receptive_field": self.receptive_field,
            "sees_all_from_block": self.sees_all_from,
            "total_stride": a.blocks[-1].total_stride,
            "stages": [dataclasses.asdict(s) for s in a.stages],
            "ideas": [dataclasses.asdict(i) for i in self.ideas],
            "html": str(self.html) if self.html else None,
        }
