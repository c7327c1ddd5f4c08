"""Files whose answers are made inside them, where their task can say how and their runtime has what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenets import tasks
from mobilenets.deploy.lowering import Unsupported
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.task import Finishing


def write(module: Any, bundle: Bundle, path: Path, batch: int | None, raw: bool = False) -> Bundle:
    """Write `bundle` to `path` by an engine's `module`; gives the bundle that the file computes.

    `raw`: with the outputs that the bundle's card has, and no others. What a task would add stays out too where the
    runtime lacks it: then its `decode` makes the answers. Raises `UserError`.
    """
    task = tasks.of(bundle.card)
    if not raw and isinstance(task, Finishing):
        whole = task.finished(bundle)
        own = {op.name for op in bundle.card.graph.ops}
        try:
            module.write(whole, path, batch)
        except Unsupported as e:
            if e.op in own:
                raise
        else:
            return whole
    module.write(bundle, path, batch)
    return bundle
