"""Which images are held out, or in which fold: every class in its share, groups whole, the same at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.data.boxes import presence

Ints = npt.NDArray[np.int64]


def _rows(targets: Any) -> npt.NDArray[Any]:
    """Targets as an array: boxes as which classes each image holds, as if they were tags."""
    return targets if isinstance(targets, np.ndarray) else presence(targets)


def _is_tags(targets: npt.NDArray[Any]) -> bool:
    """Whether an image has a row of tags, [N, C], and not a class, [N]."""
    return targets.ndim == 2


def _memberships(targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[N, K]: in which classes each image is; or which tags it has, and once more, as all have."""
    if _is_tags(targets):
        return np.concatenate([targets > 0.5, np.ones((len(targets), 1))], 1)
    classes, which = np.unique(targets, return_inverse=True)
    return np.eye(len(classes))[which]


def stratified(targets: Any, fraction: float, seed: int) -> Ints:
    """Indices of a seeded `fraction` of each class, at least one where the class has two images; sorted.

    Of tags and boxes, of which an image may have several, as near to that as can be.
    """
    targets = _rows(targets)
    if _is_tags(targets):
        part = in_whole_groups(targets, np.arange(len(targets)), (1 - fraction, fraction), seed)
        return np.flatnonzero(part == 1)
    rng = np.random.default_rng(seed)
    held = []
    for c in np.unique(targets):
        index = rng.permutation(np.flatnonzero(targets == c))
        held.append(index[: min(max(1, round(fraction * len(index))), len(index) - 1)])
    return np.sort(np.concatenate(held))


def whole_identities(identities: Ints, fraction: float, seed: int) -> Ints:
    """Indices of all images of some identities, drawn at random, `fraction` of the images or a little more; sorted.

    At least two of them have two images, and as many are left: there are pairs of the same and of others in both. Where
    fewer than four have two images, a like share of each one's images instead.
    """
    who, count = np.unique(identities, return_counts=True)
    several, least = {*who[count > 1].tolist()}, 2
    if len(several) < 2 * least:
        return stratified(identities, fraction, seed)
    held: list[int] = []
    images = 0
    for i in np.random.default_rng(seed).permutation(len(who)):
        if images >= fraction * len(identities) and len(several & {*held}) >= least:
            break
        if len(several - {*held, int(who[i])}) >= least:
            held.append(int(who[i]))
            images += int(count[i])
    return np.flatnonzero(np.isin(identities, held))


def in_whole_groups(targets: Any, groups: Ints, shares: Sequence[float], seed: int) -> Ints:
    """For each image the part, of as many as there are `shares`, that its group is in: [N].

    The largest groups first, each goes where its classes are filled least; as seats go to parties by Webster's method.
    """
    member = _memberships(_rows(targets))
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max(initial=-1) + 1, member.shape[1]))
    np.add.at(counts, group, member)
    share = np.asarray(shares)[:, None]
    totals = counts.sum(0)
    filled = np.zeros((len(shares), member.shape[1]))
    part = np.empty(len(counts), np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    for g in shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]:
        own = np.flatnonzero(counts[g])
        fill = (filled[:, own] + counts[g, own] / 2) / (share * totals[own])
        part[g] = (fill @ (counts[g, own] / totals[own])).argmin()
        filled[part[g]] += counts[g]
    return part[group]


def folds(targets: Any, groups: Ints | None, count: int, seed: int) -> Ints:
    """For each image its fold, below `count`: [N]. Every class is spread evenly, or as evenly as whole groups allow."""
    targets = _rows(targets)
    if groups is not None:
        return in_whole_groups(targets, groups, [1 / count] * count, seed)
    if _is_tags(targets):
        return in_whole_groups(targets, np.arange(len(targets)), [1 / count] * count, seed)
    rng = np.random.default_rng(seed)
    fold, dealt = np.empty(len(targets), np.int64), 0
    for c in np.unique(targets):  # dealt on from class to class, so that folds differ by one image at most
        index = rng.permutation(np.flatnonzero(targets == c))
        fold[index] = (np.arange(len(index)) + dealt) % count
        dealt += len(index)
    return fold


def limited(targets: Ints, most: int, seed: int) -> Ints:
    """Indices of at most `most` images of each class, seeded; sorted. A smaller number's are among a larger one's."""
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(np.flatnonzero(targets == c))[:most] for c in np.unique(targets)]
    return np.sort(np.concatenate([*kept, np.empty(0, np.int64)]))
