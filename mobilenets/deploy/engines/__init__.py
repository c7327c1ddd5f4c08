"""Runtimes behind one interface: an exported file (or a Bundle) -> a callable from uint8 images to named outputs.

A new runtime is one file here and its line in `RUNTIMES`. The file has

- `version()`: the installed runtime's;
- `write(bundle, path, batch)`: the bundle as this runtime's file, in its card's precision; the card goes inside, or
  beside in the same folder. `path` doesn't exist yet. The tensors are an int8 bundle's where the card says int8, else
  a float32 bundle's. `batch` None: any number of images in a call;
- `stored_precision(path)`: the precision that the file's own tensors and operations show, whatever its card says;
- `load(path, threads)`: an `Engine`, a `guard.Guarded`. A damaged file, or one without a card, is a `UserError`;
- `int8_fault()`, of one whose int8 overflows on some processors: what is wrong on this one, or nothing;
- `ram_bytes(path)`, of source for a microcontroller: the memory that it says it takes.

It imports its runtime at its top, `module` says what to install where there is none, and torch only where it must.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mobilenets import console, files
from mobilenets.deploy import finish
from mobilenets.deploy.engines import native_library, trial
from mobilenets.errors import UserError, unknown
from mobilenets.files import parse_json, size_on_disk
from mobilenets.model.bundle import CARD, Bundle, is_file, located, packaged
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Pixels

Outputs = Mapping[str, npt.NDArray[np.float32]]  # by the card's names, each [N, *shape] as the card says


@runtime_checkable
class Engine(Protocol):
    """A loaded network. `engine(images)`: uint8 [N, H, W, 3] of the card's size -> the card's outputs.

    N is any number, also where the file has a fixed batch: `run_batched` is for those.
    """

    name: str
    card: Card
    concurrent: bool  # whether several threads may call it at once

    def __call__(self, images: Pixels) -> Outputs: ...


@runtime_checkable
class Timed(Engine, Protocol):
    """An engine that tells what each of its operations takes; `layers` are their names and groups."""

    @property
    def layers(self) -> Sequence[tuple[str, int]]: ...

    def layer_ms(self, image: Pixels) -> list[float]: ...


@dataclass(frozen=True)
class Runtime:
    """What is known of a runtime without importing it.

    `format`: what `export --to` calls its files; `suffix`: what they, or their folders, end in; `package`: the
    distribution that it needs, `extra`: ours that installs it; `probe`: whether it is there, where no distribution says
    so; `runs_here`: whether files can be run on this system; `timed`: whether their time here says anything (a
    microcontroller's doesn't). `int8_limits`: of an int8 file, in the place of the task's own, where the runtime's int8
    isn't quite a bundle's.
    """

    format: str
    suffix: str
    package: str
    extra: str
    precisions: tuple[Precision, ...]
    folder: bool = False
    runs_here: bool = True
    timed: bool = True
    int8_limits: tuple[float, float] | None = None
    probe: Callable[[], bool] | None = None


def _always() -> bool:
    return True


# By the engine's name, in the order in which they are asked for a file.
RUNTIMES = {
    "onnxruntime": Runtime("onnx", ".onnx", "onnxruntime", "", ("float32", "float16", "int8", "int4")),
    "litert": Runtime("tflite", ".tflite", "ai-edge-litert", "litert", ("float32", "float16", "int8", "dynamic")),
    "openvino": Runtime(
        "openvino", ".openvino", "openvino", "openvino", ("float32", "float16", "int8"), folder=True
    ),
    "ncnn": Runtime(
        "ncnn", ".ncnn", "ncnn", "ncnn", ("float32", "float16", "int8"), folder=True,
        int8_limits=(90.0, 0.4),  # its int8 has no zero points
    ),
    "executorch": Runtime("executorch", ".pte", "executorch", "executorch", ("float32", "int8")),
    "native": Runtime(
        "native", ".mnet", "", "", ("float32", "float16", "int8"),
        runs_here=native_library.built(), probe=native_library.built,
    ),
    "coreml": Runtime(
        "coreml", ".mlpackage", "coremltools", "coreml", ("float32", "float16", "int8", "dynamic", "int4"), folder=True,
        runs_here=sys.platform == "darwin",
    ),
    "c": Runtime(
        "c", ".c-source", "", "", ("float32", "int8"), folder=True, timed=False, probe=_always,
        runs_here=any(shutil.which(compiler) for compiler in ("gcc", "clang", "cc")),
    ),
    "tflm": Runtime("c-array", ".c-array", "tflite-micro", "micro", ("int8",), folder=True, timed=False),
    "torch": Runtime("pt2", ".pt2", "torch", "train", ("float32", "float16", "int8", "dynamic")),
}  # fmt: skip
SUFFIXES = frozenset(r.suffix for r in RUNTIMES.values())
SMALLEST_FIRST: tuple[Precision, ...] = ("int8", "dynamic", "int4", "float16", "float32")


def runtime(name: str) -> Runtime:
    """By the engine's name; a UserError suggests the nearest."""
    if name not in RUNTIMES:
        raise unknown("engine", name, RUNTIMES)
    return RUNTIMES[name]


def for_format(to: str) -> str:
    """The engine of a format (onnx, openvino, tflite, ...); an engine's own name serves too."""
    by_format = {r.format: name for name, r in RUNTIMES.items()}
    if to not in by_format and to not in RUNTIMES:
        raise unknown("format", to, by_format)
    return by_format.get(to, to)


def for_suffix(path: Path) -> str:
    """The engine whose files end as `path` does."""
    for name, r in RUNTIMES.items():
        if path.suffix == r.suffix:
            return name
    known = ", ".join(r.suffix for r in RUNTIMES.values())
    raise UserError(f"{path}: no format has the suffix {path.suffix!r}; end it in one of {known}, or give --to")


def module(name: str) -> Any:
    """The engine's module; a UserError says what to install where its runtime is missing."""
    r = runtime(name)
    try:
        return importlib.import_module(f"mobilenets.deploy.engines.{name}")
    except ImportError as e:
        if (e.name or "").startswith("mobilenets"):
            raise
        extra = f"[{r.extra}]" if r.extra else ""
        raise UserError(f"{name} can't be loaded ({e}); install it with: pip install 'mobilenets{extra}'") from e


def available(name: str) -> bool:
    """Whether an engine's runtime is installed. It isn't imported."""
    r = runtime(name)
    if r.probe is not None:
        return r.probe()
    try:
        importlib.metadata.version(r.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def installed() -> list[str]:
    """The engines whose runtimes are installed, in the order of the table."""
    return [name for name in RUNTIMES if available(name)]


def version(name: str) -> str:
    """The installed runtime's version."""
    return str(module(name).version())


def check_precision(name: str, precision: str) -> Precision:
    """A UserError where engine `name` has no files of `precision`."""
    r = runtime(name)
    for p in r.precisions:
        if p == precision:
            return p
    raise unknown(f"precision for {name}", precision, r.precisions)


def for_path(path: Path) -> str:
    """Which engine runs the file or folder at `path`."""
    if not path.exists():
        near = difflib.get_close_matches(str(path), packaged(), n=1)
        hint = f"; did you mean the packaged {near[0]}?" if near else ""
        raise UserError(f"{path}: no such file or folder{hint}")
    for name, r in RUNTIMES.items():
        if path.suffix == r.suffix and path.is_dir() == r.folder:
            return name
    if path.is_dir() or is_file(path):
        # A bundle: PyTorch's is the reference, but the light install has ONNX Runtime alone.
        return "torch" if importlib.util.find_spec("torch") else "onnxruntime"
    known = ", ".join(r.suffix for r in RUNTIMES.values())
    raise UserError(
        f"{path}: no engine runs a {path.suffix or 'nameless'} file; give a bundle's folder, .mnz or one of {known}"
    )


def file_name(engine: str, precision: str) -> str:
    """What a file that a run ships is called: model.onnx, model-int8.onnx, model-float16.tflite."""
    return f"model{'' if precision == 'float32' else f'-{precision}'}{runtime(engine).suffix}"


def resolve(path: Path) -> Path:
    """What to run at `path`: a file or bundle, a packaged one by its name; of a run, the smallest file it shipped."""
    path = located(path)
    if path.is_dir() and not (path / CARD).is_file() and path.suffix not in SUFFIXES:
        shipped = [file_name(e, p) for p in SMALLEST_FIRST for e in RUNTIMES]
        for name in (*shipped, "int8", "float"):
            if (path / name).exists():
                return path / name
        raise UserError(f"{path}: neither a bundle nor a finished run")
    return path


def load(path: Path, threads: int = 1) -> Engine:
    """The network at `path` (a bundle's folder, a run's, or an exported file), ready to run on `threads` threads."""
    path = resolve(path)
    name = for_path(path)
    found = module(name)
    if path.suffix in SUFFIXES and RUNTIMES[name].runs_here:
        trial.check(path, name, found.version())
    engine: Engine = found.load(path, threads)
    if fault := int8_fault(name) if engine.card.precision == "int8" else "":
        _warn(fault)
    return engine


def card_of(path: Path) -> Card:
    """What the network at `path` says of itself, also where its runtime is for other systems alone."""
    path = resolve(path)
    found = module(for_path(path))
    card: Card = found.card_of(path) if hasattr(found, "card_of") else load(path).card
    return card


def int8_fault(name: str) -> str:
    """What is wrong with a runtime's int8 on this processor, or nothing."""
    found = module(name)
    return str(found.int8_fault()) if hasattr(found, "int8_fault") else ""


@functools.cache
def _warn(fault: str) -> None:
    """Once, also where many files are loaded."""
    console.note(f"answers in int8 can be wrong here: {fault}")


def parse_card(text: str | bytes | None, where: str) -> Card:
    """The card that a file has inside; a UserError where there is none, or it is damaged."""
    if text is None:
        raise UserError(f"{where}: has no card inside; export it with mobilenets")
    try:
        return Card.from_json(parse_json(text), where)
    except ValueError as e:
        raise UserError(f"{where}: the card inside isn't JSON: {e}") from e


def check_card(card: Card, image: Iterable[int], outputs: Mapping[str, Iterable[int]], where: str) -> None:
    """A UserError where the file at `where` takes or gives other shapes, those of one image, than its card says."""
    shapes = {name: tuple(shape) for name, shape in outputs.items()}
    if tuple(image) != (*card.preprocess.input_size, 3) or shapes != card.outputs:
        raise UserError(
            f"{where}: the card inside is another network's, {card.arch.title} with "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in card.outputs.items())}; export it again"
        )


def run_batched(run: Callable[[Pixels], Outputs], images: Pixels, batch: int | None) -> Outputs:
    """What a file that takes `batch` images in every call gives for any number of them: the last piece is filled up.

    `batch` None: any number in one call.
    """
    if batch is None or batch == len(images):
        return run(images)
    pieces = []
    for i in range(0, len(images), batch):
        piece = images[i : i + batch]
        missing = batch - len(piece)
        filled = np.concatenate([piece, np.repeat(piece[-1:], missing, 0)]) if missing else piece
        pieces.append({name: x[: len(piece)] for name, x in run(filled).items()})
    return joined(pieces)


def joined(pieces: Sequence[Outputs]) -> Outputs:
    """The outputs of several calls as those of one."""
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}


def build(name: str, bundle: Bundle, precision: Precision, threads: int) -> tuple[Engine, int]:
    """A bundle as it would be exported, ready to run, and the bytes of its file."""
    m, bundle = module(name), bundle.dense()
    with files.temporary() as folder:
        path = folder / f"model{runtime(name).suffix}"
        finish.write(m, Bundle(bundle.card.replace(precision=precision), bundle.tensors), path, None)
        return m.load(path, threads), size_on_disk(path)
