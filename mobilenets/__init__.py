"""MobileNets, exact and practical: from your data, device and budget to a file that runs there.

Every name here is imported when first used, so `import mobilenets` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenets.bundle import Bundle as Bundle
    from mobilenets.errors import UserError as UserError
    from mobilenets.images import Preprocess as Preprocess
    from mobilenets.model import create as create
    from mobilenets.predict import load as load
    from mobilenets.spec import Arch as Arch

__version__ = "0.1.0"

# Each verb is a function in the module of its name (`mobilenets.fit.fit`); these few are at the top as well.
_NAMES = {
    "Arch": "spec",
    "Bundle": "bundle",
    "Preprocess": "images",
    "UserError": "errors",
    "create": "model",
    "load": "predict",
}
_MODULES = (
    "bench", "bundle", "choose", "cost", "data", "distill", "engines", "evaluate", "export", "finders", "fit",
    "latency", "model", "predict", "published", "quantize", "recipes", "report", "shards", "spec", "sweep", "tasks",
    "teachers", "train", "tune", "zoo",
)  # fmt: skip
__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"mobilenets.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"mobilenets.{name}")
    raise AttributeError(f"module 'mobilenets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
