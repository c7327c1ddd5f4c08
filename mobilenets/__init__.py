"""MobileNets, exact and practical: from your data, device and budget to a file that runs there.

Every name here is imported when first used, so `import mobilenets` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenets.arch.spec import Arch as Arch
    from mobilenets.deploy.predict import load as load
    from mobilenets.errors import UserError as UserError
    from mobilenets.model.bundle import Bundle as Bundle
    from mobilenets.model.images import Preprocess as Preprocess
    from mobilenets.model.module import create as create

__version__ = "0.1.0"

_HOMES = {
    "Arch": "arch.spec",
    "Bundle": "model.bundle",
    "Preprocess": "model.images",
    "UserError": "errors",
    "create": "model.module",
    "load": "deploy.predict",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"mobilenets.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mobilenets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
