"""Networks as a static site that runs them where it is opened: camera, photos, nothing sent anywhere. No torch.

What is packed lies in `browser/`: the pages' own files in `app/`, our engine beside. Only `app.json`, which says what
networks there are, and `files.js`, which says what is kept for use without a network, are written here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import files
from mobilenets.arch.graph import Output
from mobilenets.arguments import StrPath
from mobilenets.console import Notebook, many
from mobilenets.deploy import beside, engines, finish, npm
from mobilenets.deploy.lowering import lower
from mobilenets.deploy.writers.native_file import PANEL, card_text, panels
from mobilenets.errors import UserError, unknown
from mobilenets.model.bundle import Bundle, is_bundle, located
from mobilenets.model.card import Card, Precision
from mobilenets.tasks.looking import last_map

if TYPE_CHECKING:
    import numpy.typing as npt

BROWSER = Path(__file__).parents[1] / "browser"
ENGINE, ORT_WEB = "native", "onnxruntime-web"
ENGINES = {ENGINE: "native", ORT_WEB: "onnxruntime"}  # what runs files in a page: what writes them here
ORT_VERSION = "1.30.0"
ORT_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
TASKS = ("classify", "attributes", "detect", "geolocate", "embed", "features")  # that `app/answers.js` reads
WHEN_USED = (".wasm", ".mjs", ".mnet", ".onnx", ".card.json")  # ends of names of what is kept only once it was used
MODULES = ("mnet.js", "pictures.js", "threads.js", "worker.js")
MAP = "last_map"  # the output of the operation that a classifier looks at the mean of
WORLD = BROWSER.parent / "reports" / "land.json"


@dataclass(frozen=True)
class Packed:
    """A network of a site: its file there, and how the page finds what of the image spoke for a label.

    `looks`: where the classifier's weights lie in the file, None where no linear layer reads the mean of a map.
    """

    name: str
    card: Card
    file: str
    size_bytes: int
    looks: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "title": self.card.arch.title, "task": self.card.task, "precision": self.card.precision,
            "file": self.file, "bytes": self.size_bytes, "looks": self.looks,
        }  # fmt: skip


@dataclass(frozen=True)
class Site(Notebook):
    """A folder that any web server can serve. `page_bytes`: what a browser fetches before a network's file."""

    path: Path
    networks: tuple[Packed, ...]
    page_bytes: int
    version: str

    def to_json(self) -> dict[str, Any]:
        networks = [n.to_json() for n in self.networks]
        return {"path": str(self.path), "page_bytes": self.page_bytes, "version": self.version, "networks": networks}

    def __rich__(self) -> str:
        lines = [f"site      {self.path}: {self.page_bytes / 1e3:.0f} kB and {many(len(self.networks), 'network')}"]
        lines += [f"network   {n.name}: {n.card.arch.title}, {n.size_bytes / 1e3:.0f} kB" for n in self.networks]
        lines += [f"try it    python -m http.server --directory {self.path} --bind 127.0.0.1"]
        return "\n".join([*lines, "          cameras want https://, or this machine's own address"])


def site(
    sources: Sequence[StrPath], out: Path, precision: str = "", engine: str = ENGINE, names: Sequence[str] = ()
) -> Site:
    """Write a site of networks (runs, bundles, .mnet files, packaged ones by name) in the place of a folder `out`.

    `precision`: of the files that are written of float bundles, their own if empty. A run's int8 bundle is taken where
    it has one. `names`: what the networks are called, by their files where it is empty. `engine`: of ENGINES; ONNX
    Runtime's is fetched by npm, once. Raises `UserError` for what is no network, can't run in the engine, or would
    replace another folder.
    """
    if engine not in ENGINES:
        raise unknown("engine of pages", engine, ENGINES)
    if not sources:
        raise UserError("a site needs a network: name a run, a bundle, a .mnet file or a packaged network")
    check_out(out)
    with files.atomic_dir(out) as tmp:
        taken: set[str] = set()
        called = names or [""] * len(sources)
        each = zip(map(Path, sources), called, strict=True)
        packed = tuple(_packed(path, name, tmp, taken, precision, ENGINES[engine]) for path, name in each)
        shutil.copytree(BROWSER / "app", tmp, dirs_exist_ok=True)
        COPIED[engine](tmp)
        if any(n.card.task == "geolocate" for n in packed):
            shutil.copyfile(WORLD, tmp / "world.json")
        version = sealed(tmp, packed)
        return Site(out, packed, page_bytes(tmp), version)


def check_out(out: Path) -> None:
    """A UserError where anything but a site, or an empty folder, would be replaced."""
    if out.exists() and not (out.is_dir() and (_is_site(out) or not any(out.iterdir()))):
        raise UserError(f"{out} exists and isn't a site, and would be replaced; choose another --out")


def _is_site(folder: Path) -> bool:
    """Whether it was written here: other tools have an app.json too."""
    try:
        d = files.parse_json((folder / "app.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(d, dict) and {"version", "networks"} <= d.keys() and (folder / "files.js").is_file()


def _native(folder: Path) -> None:
    """Our engine for browsers, in all its builds, as `folder`/engine."""
    (folder / "engine").mkdir()
    for path in [BROWSER / name for name in MODULES] + sorted(BROWSER.glob("*.wasm")):
        shutil.copyfile(path, folder / "engine" / path.name)


def _onnxruntime_web(folder: Path) -> None:
    """ONNX Runtime's as `folder`/ort, and what pictures are made smaller by."""
    (folder / "engine").mkdir()
    (folder / "ort").mkdir()
    shutil.copyfile(BROWSER / "pictures.js", folder / "engine" / "pictures.js")
    shutil.copyfile(BROWSER / ORT_WEB / "engine.js", folder / "engine.js")
    package = npm.fetched(ORT_WEB, ORT_VERSION)
    for name in ORT_FILES:
        shutil.copyfile(package / "dist" / name, folder / "ort" / name)


COPIED = {ENGINE: _native, ORT_WEB: _onnxruntime_web}


def sealed(folder: Path, packed: Sequence[Packed]) -> str:
    """Write what the page reads of itself. The version is a digest of all else: a changed site is fetched anew."""
    whole = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    inside = [(name, files.sha256(folder / name)) for name in whole]
    version = hashlib.sha256(json.dumps(inside).encode()).hexdigest()[:16]
    files.write_json(folder / "app.json", {"version": version, "networks": [n.to_json() for n in packed]})
    # Of the engine's builds and of the networks, those are kept that were used.
    kept = ["./", *(n for n in (*whole, "app.json") if not n.endswith(WHEN_USED) and n != "sw.js")]
    files.write_text(folder / "files.js", f"self.SITE = {json.dumps({'version': version, 'files': kept})};\n")
    return version


def page_bytes(folder: Path) -> int:
    """What a browser fetches before a network: all that isn't one, of the engine's builds the largest."""
    sizes = {p: p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.parent.name != "models"}
    builds = [size for p, size in sizes.items() if p.suffix == ".wasm"]
    return sum(sizes.values()) - sum(builds) + max(builds, default=0)


def _packed(source: Path, name: str, folder: Path, taken: set[str], precision: str, writer: str) -> Packed:
    """Write a network's file into the site, for the engine `writer`."""
    path = folder / "models"
    path.mkdir(exist_ok=True)
    found = _found(source)
    name = _free(name or (found.stem if found.is_file() else source.absolute().name), taken)
    path /= f"{name}{engines.runtime(writer).suffix}"
    looks = None
    if found.suffix == engines.runtime(ENGINE).suffix:
        if writer != ENGINE:
            raise UserError(f"{found}: a .mnet file runs in our own engine alone; name the bundle that it is of")
        data = found.read_bytes()
        card = engines.parse_card(card_text(data, str(found)), str(found))
        path.write_bytes(data)
    else:
        bundle = Bundle.load(found)
        wanted = engines.check_precision(writer, precision or bundle.card.precision)
        card = _written(bundle, path, wanted, writer)
        looks = _looks(bundle, card, path.read_bytes(), writer)
        if writer != ENGINE:
            beside.write(path, card)
    if card.task not in TASKS:
        raise UserError(f"{source}: the page has no answers for the task {card.task}; it has {', '.join(TASKS)}")
    return Packed(name, card, f"models/{path.name}", path.stat().st_size, looks)


def _found(source: Path) -> Path:
    """The bundle or the .mnet file at `source`; of a run, its int8 bundle where it has one."""
    path = located(source)
    if path.is_file() and path.suffix == engines.runtime(ENGINE).suffix:
        return path
    for p in (path, path / "int8", path / "float"):
        if is_bundle(p):
            return p
    raise UserError(f"{source}: no bundle, finished run or .mnet file, which a page can run")


def _free(stem: str, taken: set[str]) -> str:
    """A file's name of plain letters that isn't taken; it is now."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "network"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    taken.add(name)
    return name


def _written(bundle: Bundle, path: Path, precision: Precision, writer: str) -> Card:
    """Write a bundle as a file that gives its last map too, where that shows where it looks; gives its card."""
    if (precision == "int8") != (bundle.card.precision == "int8"):
        raise UserError(f"a {bundle.card.precision} bundle gives no {precision} file; quantize makes an int8 bundle")
    plain = bundle.dense()
    card = plain.card.replace(precision=precision, parent=bundle.digest)
    read = last_map(card)
    if read:
        outputs = (*card.head.outputs, Output(MAP, read[1], "what the classifier reads the mean of"))
        card = card.replace(head=dataclasses.replace(card.head, outputs=outputs))
    return finish.write(engines.module(writer), Bundle(card, plain.tensors), path, None).card


def _looks(bundle: Bundle, card: Card, data: bytes, writer: str) -> dict[str, Any] | None:
    """Where in a file the weights of its classifier lie, and how: a row for each label, or see `native_file.panels`."""
    read = last_map(card)
    if read is None:
        return None
    lowered = lower(Bundle(card, bundle.dense().tensors))  # whose card is of plain tensors
    values: npt.NDArray[Any] = lowered.weights(lowered.graph.op(read[0])).values
    rows = values.reshape(len(values), -1)
    panel, group = (PANEL, 4 if str(values.dtype) == "int8" else 1) if writer == ENGINE else (1, 1)
    packed = panels(rows, group) if writer == ENGINE else rows
    at = data.find(packed.tobytes())
    if at < 0:
        return None
    depth = packed.shape[1] * group
    return {"offset": at, "type": str(packed.dtype), "panel": panel, "group": group, "depth": depth}
