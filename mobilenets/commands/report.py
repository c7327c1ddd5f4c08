"""`mobilenets report`: a run's page, or that of a network that was made small."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import files
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.console import Notebook
from mobilenets.errors import UserError
from mobilenets.files import read_json
from mobilenets.model.bundle import is_bundle
from mobilenets.training.run import CONFIG, REPORT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mobilenets.reports.chain import Chain


@dataclass(frozen=True)
class Report(Notebook):
    """The page that was written; what it had to do without, or how far the run is; and what it advises to try next."""

    path: Path
    size_bytes: int
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    chain: Chain | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "report": str(self.path),
            "size_bytes": self.size_bytes,
            "notes": list(self.notes),
            "advice": list(self.advice),
            **({"chain": [dataclasses.asdict(o) for o in self.chain.links]} if self.chain else {}),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        said = Text("\n".join([f"report   {self.path}", *self.notes, *self.advice]))
        return Group(said, self.chain.table()) if self.chain else said


@checked
def report(run: StrPath, *, root: StrPath | None = None) -> Report:
    """Write a run's report: RUN/report.html, one page with everything in it; of a classifier, mistakes.csv beside it.

    Of a bundle that `prune` or `compress` made: BUNDLE.html, with the size and the score of each step since float.

    Parameters
    ----------
    run
        Folder of a run that `mobilenets fit` finished; or of one of `train` or `distill`, while it runs, too. Or a
        bundle's folder or .mnz file.
    root
        Where local copies of named data sets are; `fit` alone shows images.

    Returns
    -------
    Report
        The page's `path` and size in bytes, and `notes`: what it had to do without, or how far the run is.

    Raises
    ------
    UserError
        For a folder that isn't a run, or a run whose files are damaged; a bundle that wasn't made small.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.report("runs/flowers").path.name
    'report.html'
    """
    from mobilenets.reports import chain, fit, training  # with matplotlib, which help needs not

    run = Path(run)
    if is_bundle(run):
        found = chain.Chain.read(run)
        return _written(run.with_name(f"{run.name}.html"), chain.page(found), found=found)
    verb = _verb(run)
    notes: list[str] = []
    advice: list[str] = []
    if verb == "fit":
        page = fit.Page.read(run)
        html, notes, advice = page.render(as_path(root)), page.notes, page.advice()
        for name, text in page.tables.items():
            with files.atomic_file(run / name) as tmp:
                tmp.write_bytes(text.encode("utf-8", "replace"))
    elif verb in ("train", "distill"):
        html, state = training.page(run)
        notes.append(state)
    else:
        raise UserError(f"{run} is a run of mobilenets {verb}; report makes pages of fit, train and distill")
    return _written(run / REPORT, html, tuple(notes), tuple(advice))


def _written(
    out: Path, html: str, notes: tuple[str, ...] = (), advice: tuple[str, ...] = (), found: Chain | None = None
) -> Report:
    written = html.encode("utf-8", "replace")  # a file's name may hold what is no character
    with files.atomic_file(out) as tmp:
        tmp.write_bytes(written)
    return Report(out, len(written), notes, advice, found)


def _verb(run: Path) -> str:
    """The verb that made the run in the folder `run`. Raises `UserError`."""
    wanted = "report needs the folder of a run of mobilenets fit, train or distill"
    if not run.is_dir():
        raise UserError(f"{run}: {'not a' if run.exists() else 'no such'} folder; {wanted}")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run: {CONFIG} is missing; {wanted}")
    return str(read_json(run / CONFIG, ("verb",), "a run")["verb"])
