"""How far a classifier's answers can be trusted, as its card has it: what was found on held-out images. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobilenets.arch import fields

KEY = "trust"  # of a card's config


@dataclass(frozen=True)
class Trust:
    """What was measured on `images` held-out images. Cards of before have none of it: a temperature of 1.

    `temperature`: what the trained network's logits were divided by (Guo and others 2017). The classifier's weights
    have it in them, so that files of every kind give calibrated probabilities. `ece_before`, `ece_after`: the expected
    calibration error in percent. `reject_below`: the probability below which an answer is unsure. `least_probability`
    and `most_energy`: 95% of the held-out images have a best probability of at least, an energy of at most that.
    `thresholds`: of tags, the probability from which each holds; none: one half.
    """

    images: int = 0
    temperature: float = 1.0
    ece_before: float | None = None
    ece_after: float | None = None
    reject_below: float | None = None
    least_probability: float | None = None
    most_energy: float | None = None
    thresholds: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        given = [*out.pop("thresholds")]
        return {**out, **({"thresholds": given} if given else {})}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Trust:
        """What a card's config says of it. Raises TypeError or ValueError for what can't be."""
        d = config.get(KEY, {})
        if not isinstance(d, Mapping):
            raise TypeError(f"{KEY} is a {type(d).__name__}, not its fields")
        made = cls(**{f.name: d[f.name] for f in dataclasses.fields(cls) if f.name in d})
        fields.check(made, cls, KEY)
        made = dataclasses.replace(made, thresholds=tuple(made.thresholds))
        numbers = [v for v in vars(made).values() if isinstance(v, int | float)]
        between = all(0 <= t <= 1 for t in made.thresholds)
        if not all(map(math.isfinite, numbers)) or not between or made.temperature <= 0:
            raise ValueError(f"{KEY} has numbers that can't be")
        return made

    def __str__(self) -> str:
        said = []
        if self.temperature != 1:
            said.append(
                f"calibrated on {self.images} images: temperature {self.temperature:g}, calibration error "
                f"{self.ece_before or 0:.1f}% before, {self.ece_after or 0:.1f}% after"
            )
        if self.reject_below is not None:
            said.append(f"unsure below {self.reject_below:g}")
        if self.thresholds:
            between = " to ".join(dict.fromkeys(f"{t:.2f}" for t in (min(self.thresholds), max(self.thresholds))))
            said.append(f"tags hold from {between} on, by thresholds found on {self.images} images")
        return "; ".join(said) or "as training made them"
