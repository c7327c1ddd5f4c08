"""`mobilenets push`: a bundle, with what its run ships, on the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mobilenets import files
from mobilenets.arguments import StrPath, checked
from mobilenets.console import Notebook
from mobilenets.deploy import beside
from mobilenets.errors import UserError, needed_by
from mobilenets.model import bundle as bundles
from mobilenets.model import hub
from mobilenets.model.bundle import CARD, WEIGHTS, Bundle
from mobilenets.model.convert import catalogue
from mobilenets.model.convert.formats import one_line
from mobilenets.reports.model_card import model_card
from mobilenets.training.fitted import Fitted, Step
from mobilenets.training.run import FLOAT, MANIFEST, STEPS

if TYPE_CHECKING:
    BundleOrPath = Bundle | StrPath
else:  # a command line has its path
    BundleOrPath = Annotated[Path, Bundle]

README = "README.md"
MESSAGE = "Upload with mobilenets"


@dataclass(frozen=True)
class Pushed(Notebook):
    """What was uploaded: the address that it is loaded by, its page, the commit, and the files."""

    address: str
    url: str
    commit: str
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"address": self.address, "url": self.url, "commit": self.commit, "files": list(self.files)}

    def __rich__(self) -> str:
        return (
            f"pushed   {', '.join(self.files)}\nat       {self.url}, commit {self.commit[:12]}\n"
            f"try next mobilenets predict {self.address} IMAGE..."
        )


@checked
def push_to_hub(bundle: BundleOrPath, to: str, *, private: bool = False, message: str = MESSAGE) -> Pushed:
    """Upload a bundle to the Hugging Face Hub, with a README.md that says what it is and how it is used.

    A run's exported files go with its float bundle. All of it is one commit: it is there as a whole, or not at all.
    `hf auth login`, or the environment variable HF_TOKEN, says who you are. card.json goes as it is, with the name that
    the data had.

    Parameters
    ----------
    bundle
        A bundle's folder, a run's, or a packaged network's name; from Python a `Bundle` too.
    to
        Where to: hf://user/name, made if it isn't there; hf://user/name@branch for a branch that is.
    private
        Make it for your own eyes, where it is made.
    message
        The commit's message.

    Returns
    -------
    Pushed
        The `address` to load it by, the `url` of its page, the `commit` and the `files`.

    Raises
    ------
    UserError
        For a bundle that isn't there or is damaged, an address that can't be, a Hub that can't be reached or doesn't
        let you; without huggingface_hub.
    """
    address = hub.parse(to if hub.is_address(to) else f"hf://{to}")
    with needed_by("push"):
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "bundle"
        if isinstance(bundle, Bundle):
            made = bundle.save(saved)
        else:
            saved = bundles.find_bundle(Path(bundle))
            made = Bundle.load(saved)
            if saved.is_file():  # the Hub's bundles are folders
                saved = Path(folder) / "bundle"
                made = made.save(saved)
        run = saved.parent if (saved.parent / MANIFEST).is_file() else None
        paths = {CARD: saved / CARD, WEIGHTS: saved / WEIGHTS, **(_shipped(run) if run else {})}
        text = model_card(made, address.repository, _steps(run, made) if run else ())
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or catalogue.HUB, library_name="mobilenets")
        try:
            page = api.create_repo(address.repository, private=private, exist_ok=True)
            done = api.create_commit(
                address.repository,
                [
                    CommitOperationAdd(README, text.encode()),
                    *(CommitOperationAdd(name, path) for name, path in paths.items()),
                ],
                commit_message=message,
                revision=address.revision,
            )
        except Exception as e:  # of huggingface_hub, and of the client below it
            login = "`hf auth login` or HF_TOKEN says who you are, and its token must be one that writes"
            answered = isinstance(e, HfHubHTTPError)
            hint = login if answered else "the Hub can't be reached: try again where there is a network"
            raise UserError(f"{address}: not pushed ({one_line(e)}); {hint}") from e
    return Pushed(str(address), str(page), str(done.oid), (README, *paths))


def _shipped(run: Path) -> dict[str, Path]:
    """The files that a run ships, and what lies beside them, by the names that they get. Raises `UserError`."""
    found: dict[str, Path] = {}
    for name, entry in _manifest(run).items():
        path = run / name
        if not path.exists() or files.sha256(path) != entry:
            raise UserError(f"{path}: gone or altered since it was proved; export it again, or push {run / FLOAT}")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        every = [*inside, *(p for p in (beside.card_path(path), beside.labels_path(path)) if p.is_file())]
        found |= {p.relative_to(run).as_posix(): p for p in every}
    return found


def _manifest(run: Path) -> dict[str, str]:
    """The digests of what a run ships, by its files' names."""
    path = run / MANIFEST
    if not path.exists():
        return {}
    listed = files.read_json(path, ("files",), "a run")["files"]
    try:
        digests = {str(name): str(entry["sha256"]) for name, entry in listed.items()}
    except (AttributeError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a file of a run: it has no digests") from e
    if strange := [name for name in digests if Path(name).name != name]:
        raise UserError(f"{path}: not a file of a run: {strange[0]} is no file's name")
    return digests


def _steps(run: Path, made: Bundle) -> list[Step]:
    """What `fit` found of the files that ship."""
    path = run / STEPS
    if not path.exists():
        return []
    card = made.card
    fitted = files.read_object(path, lambda d: Fitted.from_json(d, run, card.arch, card.task), "a run of fit")
    shipped = _manifest(run)
    return [s for s in fitted.steps if Path(s.path).name in shipped]
