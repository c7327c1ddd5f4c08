"""`mobilenets choose`: the best network within a budget, and this machine's latencies for it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mobilenets import files
from mobilenets.commands.options import NumClasses, commas
from mobilenets.deploy import latency
from mobilenets.deploy.choose import SMALL, Budget, Choice, grid, pick
from mobilenets.deploy.latency import Table


def choose(
    *,
    budget: Annotated[Budget | None, Parameter(name="*")] = None,
    engine: Annotated[tuple[str, ...], commas(str)] = ("onnxruntime",),
    precision: Annotated[tuple[str, ...], commas(str)] = ("int8",),
    threads: int = 1,
    num_classes: NumClasses = 1000,
    table: Path | None = None,
    remeasure: bool = False,
    plot: Path | None = None,
) -> Choice:
    """Measure every published network, width and resolution here, and pick the most accurate network within a budget.

    Measured once per machine, engine version, precision and number of threads; then at once from a cache. What is
    measured beside a busy program isn't kept.

    Parameters
    ----------
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
    """
    chosen = pick(grid(num_classes), budget or Budget(), engine, precision, threads, table, remeasure=remeasure)
    if plot:
        from mobilenets.reports import plots, style

        style.save(plots.pareto(chosen), plot)
    return chosen


def latency_table(
    *,
    engine: Annotated[tuple[str, ...], commas(str)] = ("onnxruntime",),
    precision: Annotated[tuple[str, ...], commas(str)] = ("int8",),
    threads: Annotated[tuple[int, ...], commas(int)] = (1,),
    num_classes: NumClasses = 1000,
    remeasure: bool = False,
    out: Path,
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
    """
    everything = {a.digest: a for side in (None, SMALL // 2 - 1) for a in grid(num_classes, side)}
    made = latency.here(list(everything.values()), latency.settings(engine, precision, threads), remeasure)
    files.write_json(out, made.to_json())
    return made
