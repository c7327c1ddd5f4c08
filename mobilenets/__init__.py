"""MobileNets, exact and practical: from your data, device and budget to a file that runs there.

Every name here is imported when first used, so `import mobilenets` loads no torch. The functions are the command line's
verbs (`data check` is `check_data`, `list` is `list_networks`, `import` is `import_weights`, `eval` is `evaluate`,
`push` is `push_to_hub`, `update make` is `make_update`), and return what those print. `create` and `load` give a
network to train on and one to run. A wrong call or a wrong file is a `UserError`, one line that says what to do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenets.arch.spec import Arch as Arch
    from mobilenets.arch.spec import Variant as Variant
    from mobilenets.commands.app import app as app
    from mobilenets.commands.bench import bench as bench
    from mobilenets.commands.check_data import check_data as check_data
    from mobilenets.commands.choose import choose as choose
    from mobilenets.commands.choose import latency_table as latency_table
    from mobilenets.commands.compare import compare as compare
    from mobilenets.commands.compress import compress as compress
    from mobilenets.commands.cost import cost as cost
    from mobilenets.commands.distill import distill as distill
    from mobilenets.commands.evaluate import evaluate as evaluate
    from mobilenets.commands.explain import explain as explain
    from mobilenets.commands.export import export as export
    from mobilenets.commands.fetch import fetch as fetch
    from mobilenets.commands.fit import fit as fit
    from mobilenets.commands.import_weights import import_weights as import_weights
    from mobilenets.commands.index import index as index
    from mobilenets.commands.list import list_networks as list_networks
    from mobilenets.commands.measure import measure as measure
    from mobilenets.commands.predict import predict as predict
    from mobilenets.commands.prune import prune as prune
    from mobilenets.commands.push import push_to_hub as push_to_hub
    from mobilenets.commands.quantize import quantize as quantize
    from mobilenets.commands.recipes import recipes as recipes
    from mobilenets.commands.report import report as report
    from mobilenets.commands.reproduce import reproduce as reproduce
    from mobilenets.commands.search import search as search
    from mobilenets.commands.serve import serve as serve
    from mobilenets.commands.shards import shards as shards
    from mobilenets.commands.show import show as show
    from mobilenets.commands.sweep import sweep as sweep
    from mobilenets.commands.train import train as train
    from mobilenets.commands.tune import tune as tune
    from mobilenets.commands.update import apply_update as apply_update
    from mobilenets.commands.update import make_update as make_update
    from mobilenets.commands.update import roll_back as roll_back
    from mobilenets.commands.update import show_update as show_update
    from mobilenets.commands.update import update_key as update_key
    from mobilenets.commands.update_server import pull_updates as pull_updates
    from mobilenets.commands.update_server import serve_updates as serve_updates
    from mobilenets.commands.verify import verify as verify
    from mobilenets.data.alignment import Faces as Faces
    from mobilenets.data.source import Reading as Reading
    from mobilenets.deploy.app import Site as Site
    from mobilenets.deploy.choose import Budget as Budget
    from mobilenets.deploy.choose import Choice as Choice
    from mobilenets.deploy.export import Export as Export
    from mobilenets.deploy.foreign import Foreign as Foreign
    from mobilenets.deploy.hosting import Hosting as Hosting
    from mobilenets.deploy.predict import Model as Model
    from mobilenets.deploy.predict import Prediction as Prediction
    from mobilenets.deploy.predict import load as load
    from mobilenets.errors import UserError as UserError
    from mobilenets.model.bundle import Bundle as Bundle
    from mobilenets.model.card import Card as Card
    from mobilenets.model.images import Preprocess as Preprocess
    from mobilenets.model.net import Backbone as Backbone
    from mobilenets.model.net import Net as Net
    from mobilenets.tasks.create import create as create
    from mobilenets.tasks.detect.config import DetectorOptions as DetectorOptions
    from mobilenets.tasks.detect.module import Detector as Detector
    from mobilenets.tasks.embed.options import EmbedOptions as EmbedOptions
    from mobilenets.training.calibrated import Calibration as Calibration
    from mobilenets.training.fitted import Fitted as Fitted
    from mobilenets.training.recipes import Distillation as Distillation
    from mobilenets.training.recipes import Overrides as Overrides
    from mobilenets.training.recipes import Recipe as Recipe

__version__ = "0.1.0"

_HOMES = {
    # the verbs
    "app": "commands.app",
    "bench": "commands.bench",
    "check_data": "commands.check_data",
    "choose": "commands.choose",
    "compare": "commands.compare",
    "compress": "commands.compress",
    "cost": "commands.cost",
    "distill": "commands.distill",
    "evaluate": "commands.evaluate",
    "explain": "commands.explain",
    "export": "commands.export",
    "fetch": "commands.fetch",
    "fit": "commands.fit",
    "import_weights": "commands.import_weights",
    "latency_table": "commands.choose",
    "index": "commands.index",
    "list_networks": "commands.list",
    "measure": "commands.measure",
    "predict": "commands.predict",
    "prune": "commands.prune",
    "push_to_hub": "commands.push",
    "quantize": "commands.quantize",
    "recipes": "commands.recipes",
    "report": "commands.report",
    "reproduce": "commands.reproduce",
    "shards": "commands.shards",
    "search": "commands.search",
    "serve": "commands.serve",
    "show": "commands.show",
    "sweep": "commands.sweep",
    "train": "commands.train",
    "tune": "commands.tune",
    "apply_update": "commands.update",
    "make_update": "commands.update",
    "pull_updates": "commands.update_server",
    "roll_back": "commands.update",
    "serve_updates": "commands.update_server",
    "show_update": "commands.update",
    "update_key": "commands.update",
    "verify": "commands.verify",
    # networks
    "create": "tasks.create",
    "load": "deploy.predict",
    # what they take and give
    "Arch": "arch.spec",
    "Backbone": "model.net",
    "Budget": "deploy.choose",
    "Bundle": "model.bundle",
    "Calibration": "training.calibrated",
    "Card": "model.card",
    "Choice": "deploy.choose",
    "Detector": "tasks.detect.module",
    "DetectorOptions": "tasks.detect.config",
    "Distillation": "training.recipes",
    "EmbedOptions": "tasks.embed.options",
    "Export": "deploy.export",
    "Faces": "data.alignment",
    "Fitted": "training.fitted",
    "Foreign": "deploy.foreign",
    "Hosting": "deploy.hosting",
    "Model": "deploy.predict",
    "Net": "model.net",
    "Overrides": "training.recipes",
    "Prediction": "deploy.predict",
    "Preprocess": "model.images",
    "Reading": "data.source",
    "Recipe": "training.recipes",
    "Site": "deploy.app",
    "UserError": "errors",
    "Variant": "arch.spec",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from mobilenets.errors import needed_by

        with needed_by(name):
            return getattr(importlib.import_module(f"mobilenets.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mobilenets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
