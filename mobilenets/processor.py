"""What the processor says that it has, and how much of it is ours. No torch."""

from __future__ import annotations

import math
import os
from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time in so many, or "max": a container's limit


def cores() -> int:
    """How many processors this process may use: not those that an affinity or a container's limit keeps from it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = map(int, QUOTA.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return count
    return max(1, min(count, math.ceil(most / period)))


def has_vnni() -> bool:
    """Whether it adds products of bytes up in 32 bits; kernels for AVX2 alone add two in 16, which overflow."""
    return bool(VNNI & {*features().split()})


def adds_in_16_bits() -> bool:
    """Whether kernels of x86 for int8 overflow here: it is known to have AVX2, and no VNNI."""
    return "avx2" in features().split() and not has_vnni()


def features() -> str:
    """Its line of feature flags, as Linux gives it; empty where the system doesn't say."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as f:
            return next((line for line in f if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
