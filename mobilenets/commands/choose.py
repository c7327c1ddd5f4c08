"""`mobilenets choose`: the best network within a budget, and this machine's latencies for it elsewhere."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mobilenets import files
from mobilenets.arch.zoo import SMALL
from mobilenets.arguments import StrPath, as_path, checked, several
from mobilenets.commands.options import Ints, NumClasses, Words
from mobilenets.deploy import latency
from mobilenets.deploy.choose import Budget, Choice, grid, pick
from mobilenets.deploy.latency import Table
from mobilenets.deploy.variants import pick_variant
from mobilenets.tasks import find_trained, with_options
from mobilenets.tasks.detect.config import DetectorFamily, DetectorOptions
from mobilenets.tasks.task import Ranged, Task


@checked
def choose(
    *,
    task: str = "classify",
    detector: DetectorFamily | None = None,
    budget: Annotated[Budget | None, Parameter(name="*")] = None,
    engine: Words = ("onnxruntime",),
    precision: Words = ("int8",),
    threads: int = 1,
    num_classes: NumClasses = 1000,
    table: StrPath | None = None,
    remeasure: bool = False,
    plot: StrPath | None = None,
) -> Choice:
    """Measure every published network, width and resolution here, and pick the most accurate network within a budget.

    Measured once per machine, engine version, precision and number of threads; then at once from a cache. What is
    measured beside a busy program isn't kept.

    Parameters
    ----------
    task
        What networks are for: classify, or detect: then each is measured whole, from pixels to boxes.
    detector
        Of --task detect, the one family to choose among: ssd, ssdlite, ssdlite-torchvision, ssd-fpnlite; or, of two
        stages, faster-rcnn-fpn, mask-rcnn. These are measured on what takes them longest, a photo full of objects. If
        left out, ssdlite, ssd and ssd-fpnlite: one of two stages that finds as much is always slower.
    engine
        Runtimes, with commas between: onnxruntime, openvino, litert, ...
    precision
        Precisions of the exported file, with commas between: int8, float32, ...; a runtime hasn't all.
    threads
        Threads (and processors) to run on.
    num_classes
        Outputs of the classifier.
    table
        Latencies measured on another machine (`mobilenets latency-table`), instead of measuring here.
    remeasure
        Measure again what was measured before.
    plot
        Draw accuracy over latency into this file too (.png, .svg, .pdf).

    Returns
    -------
    Choice
        `pick`, the network with its latency in milliseconds, size in megabytes (10^6 bytes), macs and params in
        millions; `candidates`, all that it was picked from, and the machine.

    Raises
    ------
    UserError
        Where nothing meets the budget (it names the nearest), for an unknown engine or precision, a table that isn't
        one.

    Examples
    --------
    A latency table is measured on the device once, `mobilenets latency-table --out pi5.json`, and chosen by anywhere:

    >>> import mobilenets
    >>> made = mobilenets.choose(budget=mobilenets.Budget(max_macs_m=50), table="pi5.json")
    >>> made.pick.arch.title, made.pick.macs_m < 50
    ('v3-small 0.75-224', True)
    """
    if plot:  # what it lacks is said before the minutes that measuring takes
        from mobilenets.reports import plots, style

        style.kind(as_path(plot))

    def picked(of: Task) -> Choice:
        return pick(
            grid(num_classes, None, of), budget or Budget(), several(engine), several(precision), threads,
            as_path(table), of, remeasure,
        )  # fmt: skip

    asked = with_options(find_trained(task), {"detect": DetectorOptions(detector)}, None)
    if isinstance(asked, Ranged):
        best = pick_variant(asked, num_classes, picked)
        assert best is not None  # each way has networks
        chosen = best[0]
    else:
        chosen = picked(asked)
    if plot:
        style.save(plots.pareto(chosen), as_path(plot))
    return chosen


@checked
def latency_table(
    *,
    engine: Words = ("onnxruntime",),
    precision: Words = ("int8",),
    threads: Ints = (1,),
    num_classes: NumClasses = 1000,
    remeasure: bool = False,
    out: StrPath,
) -> Table:
    """Measure every network here, as a file for `choose --table` on another machine.

    Needs the runtime and numpy, no PyTorch. Stopped with Ctrl-C, it goes on where it was.

    Parameters
    ----------
    engine
        Runtimes, with commas between: onnxruntime, openvino, litert, ...
    precision
        Precisions, with commas between: int8, float32, ...; a runtime hasn't all.
    threads
        Numbers of threads (and processors), with commas between.
    num_classes
        Outputs of the classifier.
    remeasure
        Measure again what was measured before.
    out
        The file to write (.json).

    Returns
    -------
    Table
        What was measured: milliseconds and bytes of each network in each setting, the machine, the engines' versions.

    Raises
    ------
    UserError
        For an unknown engine or precision, a runtime that isn't installed, a file that can't be written.
    """
    everything = {a.digest: a for side in (None, SMALL // 2 - 1) for a in grid(num_classes, side)}
    settings = latency.settings(several(engine), several(precision), several(threads))
    made = latency.here(list(everything.values()), settings, remeasure)
    files.write_json(as_path(out), made.to_json())
    return made
