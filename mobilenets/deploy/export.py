"""Bundle -> a file that runs without us, proved to compute what the bundle computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mobilenets import files, tasks
from mobilenets.console import Notebook
from mobilenets.deploy import engines, finish, trust
from mobilenets.deploy.engines import Engine, trial
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.tasks.task import Parity

if TYPE_CHECKING:
    from rich.console import RenderableType

PARITY_IMAGES = 256
GENERATED = "generated noise"  # what a file is said to be proved on where there are no images
BATCH = 8  # larger ones cost more in fresh memory than they save


@dataclass(frozen=True)
class Export(Notebook):
    """An exported file and its proof over `images` images of `data`, or GENERATED ones.

    `agreement`: percent with the same answer as PyTorch (the same label; of features, the same direction);
    `difference`: the largest between two numbers of an answer (see the task's `parity`); both None where this system
    has no runtime for the file. `limits`, of the two: what the file was kept by; `ties`: of the other answers, those
    where PyTorch's own was nearly another. `sha256`: of the file, or of the folder (`files.sha256`). `score`: the
    task's primary metric on the whole `split`, if its labels were there. `ram_bytes`: what source for a microcontroller
    says it takes.
    """

    path: Path
    engine: str
    precision: Precision
    size_bytes: int
    agreement: float | None
    difference: float | None
    images: int
    data: str
    task: str = "classify"
    sha256: str = ""
    score: float | None = None
    split: str = ""
    limits: tuple[float, float] | None = None
    ties: int = 0
    ram_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        primary = tasks.find(self.task).primary
        own = {k: v for k, v in vars(self).items() if k != "score"}
        return {**own, "path": str(self.path), **({primary.name: self.score} if primary else {})}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Export:
        """The inverse of `to_json`."""
        fields = dict(d)
        primary = tasks.find(fields.get("task", "classify")).primary
        score = fields.pop(primary.name, None) if primary else None
        limits = fields.get("limits") and tuple(fields["limits"])
        return cls(**{**fields, "path": Path(fields["path"]), "score": score, "limits": limits})

    def __rich__(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(f"exported {self.path}", ["", "value"], left=("",))
        t.add_row("runtime", self.engine)
        t.add_row("precision, as found in the file", self.precision)
        t.add_row("size (MB)", megabytes(self.size_bytes))
        if self.ram_bytes is not None:
            t.add_row("RAM (bytes)", f"{self.ram_bytes:,}")
        if self.agreement is None:
            t.add_row("proof", "none: this system can't run it")
        else:
            least, most = (f" (limit {n:.2g})" for n in self.limits) if self.limits else ("", "")
            t.add_row(
                f"agreement with PyTorch (%), {self.images} images of {self.data}", f"{self.agreement:.2f}{least}"
            )
            differ = round(self.images * (1 - self.agreement / 100))
            if differ:
                t.add_row("other answers, of which at a near tie", f"{differ}, {self.ties}")
            t.add_row("largest difference of a number", f"{self.difference:.2g}{most}")
        primary = tasks.find(self.task).primary
        if self.score is not None and primary:
            t.add_row(f"{primary.title}, {self.split} split", f"{self.score:.2f}")
        return t


def export_bundle(
    source: Bundle,
    images: Pixels,
    path: Path,
    data_name: str,
    engine: str = "onnxruntime",
    precision: Precision | None = None,
    batch: int | None = None,
    raw: bool = False,
) -> Export:
    """Write `source` to `path` for `engine`, proved on `images`, uint8 [N, H, W, 3]; a failed proof leaves no file.

    `precision`: of the file, the bundle's own if None; an int8 bundle gives int8 files, a float one all others. `raw`:
    the file gives what the bundle gives, its task adds nothing (see `finish`).
    Raises `UserError` where the file's answers differ from PyTorch's by more than the task allows, or the file isn't of
    the precision asked for.
    """
    from mobilenets.deploy.engines.torch import TorchEngine

    if not len(images):
        raise UserError(f"an export is proved on images, and none of {data_name} can be read; name others")
    precision = engines.check_precision(engine, precision or source.card.precision)
    if (precision == "int8") != (source.card.precision == "int8"):
        raise UserError(f"a {source.card.precision} bundle gives no {precision} file; quantize makes an int8 bundle")
    plain = source.dense()
    made = Bundle(plain.card.replace(precision=precision, parent=source.digest), plain.tensors)
    module, runtime = engines.module(engine), engines.runtime(engine)
    check_out(path, engine)
    with written(path, runtime.folder) as tmp:
        made = finish.write(module, made, tmp, batch, raw)
        found = module.stored_precision(tmp)
        if found != precision:
            raise UserError(f"{path} was not kept: {engine} made it {found}, not the {precision} that was asked for")
        size, digest, task = files.size_on_disk(tmp), files.sha256(tmp), made.card.task
        ram = module.ram_bytes(tmp) if hasattr(module, "ram_bytes") else None
        unproved = Export(path, engine, precision, size, None, None, 0, data_name, task, digest, ram_bytes=ram)
        if not runtime.runs_here:
            return unproved
        proof = compare(TorchEngine(made, threads=2), module.load(tmp, 1), images, path)
        trial.remember(tmp, engine, module.version())
    return dataclasses.replace(
        unproved,
        agreement=proof.agreement,
        difference=proof.difference,
        images=len(images),
        limits=proof.limits,
        ties=proof.ties,
    )


def generated(preprocess: Preprocess, count: int = PARITY_IMAGES) -> Pixels:
    """Noise from coarse to fine, uint8 [count, H, W, 3], the same each time: what to prove a file on without images."""
    rng = np.random.default_rng(0)
    height, width = preprocess.input_size
    out = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        grain = 2 ** (1 + i % 5)  # patches across
        coarse = rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
        out[i] = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return out


@contextmanager
def written(path: Path, folder: bool) -> Iterator[Path]:
    """A path that doesn't exist, for a runtime to write to: it takes the place of `path` if the block ends well."""
    if folder:
        with files.atomic_dir(path) as tmp:
            tmp.rmdir()
            yield tmp
            if not path.is_dir():
                return
            strange = sorted(_names(path) - _names(tmp))
            if strange:
                raise UserError(f"{path} holds other files too ({', '.join(strange[:3])}): choose another name")
    else:
        with files.atomic_file(path) as tmp:
            yield tmp


def check_out(path: Path, engine: str) -> None:
    """A UserError where no file for `engine` can be written: best said before the work of making it."""
    runtime = engines.runtime(engine)
    if path.suffix != runtime.suffix:  # by which its engine is found
        raise UserError(f"{path}: for {runtime.format}, its name has to end in {runtime.suffix}")
    if path.exists() and path.is_dir() != runtime.folder:
        is_one, writes = ("a file", "a folder") if runtime.folder else ("a folder", "a file")
        raise UserError(f"{path} is {is_one}, and {runtime.format} is {writes}: choose another name")
    files.check_place(path)


def _names(folder: Path) -> set[str]:
    """Files in a folder, and in those inside it."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def compare(reference: Engine, engine: Engine, images: Pixels, path: Path) -> Parity:
    """How the answers of `engine`, the file at `path`, compare with the reference's; a UserError where too little."""
    pieces = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    a, b = (engines.joined([e(piece) for piece in pieces]) for e in (reference, engine))
    precision = engine.card.precision
    own = engines.runtime(engine.name).int8_limits if precision == "int8" else None
    parity = tasks.of(engine.card).parity(a, b, precision, trust.limits(engine.card, own))
    if not parity.ok:
        fault = engines.int8_fault(engine.name) if precision == "int8" else ""
        why = f"; {fault}" if fault else ""
        raise UserError(f"{path} was not kept: it differs from PyTorch ({parity.reason}){why}")
    return parity
