"""Networks made comparable: of each the width at which an image costs the same. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from mobilenets.arch import cost
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError

STEP, MOST = 0.01, 200  # widths are looked at in hundredths, up to 2
NEAR = 0.15  # how far from the macs asked for a network may be, as a share of them: channels come in eights


def at_macs(network: Callable[[float], Arch], macs: int) -> Arch:
    """The network of all widths, `network(alpha)`, whose multiply-adds for an image are nearest to `macs`.

    Raises `UserError` where none comes near (`NEAR`).
    """

    def at(step: int) -> Arch:
        return network(round(step * STEP, 2))

    def counted(step: int) -> int:
        return cost.count(at(step)).macs

    above = bisect_left(range(1, MOST + 1), macs, key=counted) + 1
    best = min({max(above - 1, 1), min(above, MOST)}, key=lambda step: abs(counted(step) - macs))
    if abs(counted(best) - macs) > NEAR * macs:
        a = at(best)
        raise UserError(
            f"{a.name} at {a.resolution} px has no width with {macs / 1e6:.3g} M macs: the nearest, "
            f"{a.alpha:g}, has {counted(best) / 1e6:.3g} M"
        )
    return at(best)
