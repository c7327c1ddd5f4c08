"""Which numbers the processor is fast with."""

from __future__ import annotations

import torch


def fast_bf16() -> bool:
    """Whether the processor that computes has instructions for 16-bit brain floats."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
