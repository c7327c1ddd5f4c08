"""`mobilenets prune`: fewer channels, or fewer weights, trained to do without the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import console, tasks
from mobilenets.arguments import DataSource, StrPath, as_path, checked, share
from mobilenets.compression import prune as pruning
from mobilenets.compression.goals import AT_ONCE, Goal, Importance, Latency, Macs, Params, macs_m, params_m
from mobilenets.compression.prune import Cutting, Narrowing, Step, Thinning
from mobilenets.compression.sparsify import Anywhere, NofM
from mobilenets.data.source import Reading, named
from mobilenets.deploy import latency
from mobilenets.deploy.choose import Budget
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.reports.card import bundle_table
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.recipes import Overrides

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Pruned(Bundle):
    """A pruned bundle with what each step left; `steps[0]` is the network before the first."""

    steps: tuple[Step, ...]
    metric: MetricSpec

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "steps": [dataclasses.asdict(s) for s in self.steps]}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        timed = self.steps[0].latency_ms is not None
        columns = ["step", "macs M", "params M", "zeros %", *["latency ms"] * timed, self.metric.title]
        t = console.table("pruned step by step, each trained", columns)
        for s in self.steps:
            ms = [f"{s.latency_ms:.3f}"] if s.latency_ms is not None else []
            cells = [f"{s.macs_m:.2f}", f"{s.params_m:.3f}", f"{100 * s.zeros:.1f}", *ms, f"{s.score:.2f}"]
            t.add_row(str(s.number) if s.number else "before", *cells)
        return Group(bundle_table(self), t)


@checked
def prune(
    bundle: StrPath,
    data: DataSource | None = None,
    *,
    out: StrPath,
    target_macs: str | float | None = None,
    target_params: str | float | None = None,
    target_latency: str | float | None = None,
    max_latency_ms: float | None = None,
    engine: str = "onnxruntime",
    precision: Precision = "float32",
    threads: int = 1,
    unstructured: str | float | None = None,
    sparsity: str | None = None,
    importance: Importance = "taylor",
    images: int = pruning.IMAGES,
    multiple: int = AT_ONCE,
    steps: int = pruning.STEPS,
    final_epochs: int | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    seed: int = 0,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Pruned:
    """Prune a float bundle: whole channels until it is fast or small enough, or single weights; trained in between.

    Without its channels a network is an ordinary one with narrower layers: every runtime takes it, and is faster by it.
    Zeros among its weights make files smaller, once they are coded; they stay zeros in training and in `quantize`.

    Parameters
    ----------
    bundle
        A float bundle's folder, or a run's.
    data
        Labelled images; those that the bundle was trained on, if left out.
    out
        Folder of the pruned bundle. A pruning that was stopped goes on when the same command is given again; until then
        it is in OUT.prune.
    target_macs
        Remove channels until so much of the multiply-adds is left: 50%, or 0.5.
    target_params
        Until so much of the parameters is left, by which its files are smaller: 50%.
    target_latency
        Until it takes so much of the time that the bundle takes here, measured on --engine: 50%.
    max_latency_ms
        Until one image takes so many milliseconds here, measured on --engine.
    engine
        What latencies are measured on: onnxruntime, native, openvino, ...
    precision
        What it computes in there: float32, int8, ...
    threads
        How many threads it has.
    unstructured
        Set so many of the weights to zero, the smallest: 70%.
    sparsity
        Leave so many of so many weights in a row: 2:4.
    importance
        Which channels go: those whose loss costs least by its gradient on the data (taylor), those with the smallest
        weights (magnitude), or with the smallest BatchNorm scale (bn-scale).
    images
        Training images by which taylor judges, in each step.
    multiple
        Channels of each layer are a multiple of this; runtimes compute 8 or more at once.
    steps
        In how many steps; the network is trained after each.
    final_epochs
        Epochs after the last step; three times those after the others, if left out.
    seed
        Seed of everything random.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Pruned
        The bundle, as it is in `out` now, with its `steps`: macs, parameters, share of zeros, latency, score of each.

    Raises
    ------
    UserError
        For a bundle that isn't float, data that isn't there, a target that no width meets (it says the nearest, and its
        score), numbers that can't be. `Interrupted` on Ctrl-C: the same call goes on with it.

    Examples
    --------
    >>> import mobilenets
    >>> few = mobilenets.Overrides(epochs=1, workers=0)
    >>> made = mobilenets.prune("runs/flowers", "flowers", out="half", target_macs="50%", steps=1, overrides=few)
    >>> made.steps[1].macs_m <= 0.5 * made.steps[0].macs_m
    True
    """
    out = Path(out)
    bundles.check_out(out)
    source = Bundle.load(bundles.find_bundle(Path(bundle)))
    metric = tasks.find_trained(source.card.task).primary
    if source.card.precision != "float32":
        raise UserError(f"{bundle} is {source.card.precision}: prune the float bundle, then quantize what comes out")
    for name, value in (("images", images), ("multiple", multiple), ("steps", steps)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if final_epochs is not None and final_epochs < 1:
        raise UserError(f"final-epochs must be at least 1, not {final_epochs}")
    asked = {
        "--target-macs": target_macs, "--target-params": target_params, "--target-latency": target_latency,
        "--max-latency-ms": max_latency_ms, "--unstructured": unstructured, "--sparsity": sparsity,
    }  # fmt: skip
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"say one of {', '.join(asked)}{', not ' + ' and '.join(given) if given else ''}")
    dense = source.dense()
    recipe = pruning.recipe_of(source.card, overrides)
    how: Cutting
    if unstructured is not None:
        how = Thinning(Anywhere(share(unstructured, "--unstructured")))
    elif sparsity is not None:
        how = Thinning(NofM.parse(sparsity))
    else:
        goal: Goal
        if target_macs is not None:
            goal = Macs(share(target_macs, "--target-macs") * macs_m(dense.card))
        elif target_params is not None:
            goal = Params(share(target_params, "--target-params") * params_m(dense.card))
        else:
            Budget(max_latency_ms=max_latency_ms)
            (setting,) = latency.settings([engine], [precision], [threads])
            part = 0.0 if target_latency is None else share(target_latency, "--target-latency")
            goal = Latency(dense.card, setting, max_latency_ms or 0.0, part)
        how = Narrowing(dense, goal, importance, multiple, images, recipe, seed)
    dataset = tasks.data_of(source.card, named(data, reading), as_path(root))
    made, told = pruning.prune(
        dense, dataset, how, out, steps=steps, recipe=recipe, final_epochs=final_epochs, seed=seed
    )
    assert metric is not None
    return Pruned(made.card, made.tensors, made.digest, steps=told, metric=metric)
