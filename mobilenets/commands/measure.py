"""`mobilenets measure`: every network measured in a browser, on the phone that opens the page."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mobilenets import console, files
from mobilenets.arch.zoo import SMALL
from mobilenets.arguments import StrPath, as_path, checked, several
from mobilenets.commands.options import NumClasses, Words
from mobilenets.deploy import device
from mobilenets.deploy.choose import grid
from mobilenets.deploy.hosting import Hosting, hosted, tell
from mobilenets.deploy.latency import Table
from mobilenets.errors import UserError

CLASSES = 1000  # of `choose` too, where nobody says otherwise


@checked
def measure(
    *,
    out: StrPath,
    seconds: float = 60.0,
    precision: Words = ("int8",),
    num_classes: NumClasses = CLASSES,
    hosting: Annotated[Hosting | None, Parameter(name="*")] = None,
) -> Table:
    """Measure every network on another device: serve a page, which measures there and sends the table back.

    Open the address that is printed, on the phone by its code, and leave the page in front until it is done. Then
    `choose --table` and `fit --table` take what fits that device, with `--engine native`: what `mobilenets app` packs.

    Parameters
    ----------
    out
        The file to write (.json).
    seconds
        How long the page measures.
    precision
        Precisions, with commas between: int8, float32.
    num_classes
        Outputs of the classifier.

    Returns
    -------
    Table
        Milliseconds and bytes of each network on that device, in its browser.

    Raises
    ------
    UserError
        For an unknown precision, a port that can't be had, a file that can't be written.
    """
    how, path = hosting or Hosting(), as_path(out)
    if path.is_dir():  # said before the minute that measuring takes
        raise UserError(f"{path} is a folder; name a file to write")
    device.check_seconds(seconds)
    everything = {a.digest: a for side in (None, SMALL // 2 - 1) for a in grid(num_classes, side)}
    measurement = device.Measurement(list(everything.values()), several(precision), seconds)
    try:
        made = open_to(measurement, how)
    finally:
        measurement.close()
    files.write_json(path, made.to_json())
    classes = "" if num_classes == CLASSES else f"--classes {num_classes} "
    console.note(f"choose by it: mobilenets choose --table {path} {classes}--engine native --max-latency-ms 16")
    return made


def open_to(measurement: device.Measurement, how: Hosting) -> Table:
    """What the first visitor measures."""
    with hosted(measurement.answer, how) as address:
        tell(address, how)
        made = measurement.done.get()
    slow, most = device.slowed(made)
    if slow:
        console.note(
            f"{made.machine}: {console.many(slow, 'network')} measured while it was slower, up to {most:.2f} times: it "
            "became hot, or busy; measure again when it is neither"
        )
    return made
