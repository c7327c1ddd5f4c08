"""What the processor says that it has. No torch."""

from __future__ import annotations

from pathlib import Path


def features() -> str:
    """Its line of feature flags, as Linux gives it; empty where the system doesn't say."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as f:
            return next((line for line in f if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
