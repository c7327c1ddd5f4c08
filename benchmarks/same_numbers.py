"""That a rebuild of the package changes no number: everything it computes, as digests, before and after.

    python benchmarks/same_numbers.py record OUT.json [--checkout DIR] [--work DIR] [--all]
    python benchmarks/same_numbers.py compare BEFORE.json AFTER.json

`record` knows the package by its command line alone, so that files may move and modules change their names: it runs
`python -m mobilenets` of a checkout (this one, if none is named) and keeps a sha256 of each answer. The networks are
timm's with seeded random weights, the images are drawn by a seeded generator: no download. A call that fails is kept
as the last line that it says. `compare` ends with 1 where anything differs. Both must be of one machine and one set of
installed packages: other processors and other versions round otherwise.

An item's key ends in what its digest is of: `bytes` a file's, or the names and files of a folder; `weights` the bytes
of a bundle's weights.safetensors; `text` what a verb prints; all others are of canonical JSON. Two records of one
checkout differ in nothing: from a bundle's card, the time and the versions are taken before anything is made of it, and
of Core ML's packages the identifiers and the order of entries, which are random, don't count. Formats that take long to
write are written of one network; with --all, of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = {
    ".onnx": ("float32", "float16", "int8", "int4"),
    ".openvino": ("float32", "float16", "int8"),
    ".tflite": ("float32", "float16", "dynamic", "int8"),
    ".pte": ("float32", "int8"),
    ".ncnn": ("float32", "float16", "int8"),
    ".mlpackage": ("float32", "float16", "dynamic", "int8"),
    ".pt2": ("float32", "float16", "dynamic", "int8"),
    ".c-array": ("int8",),
}
NETWORKS = {"v1": 0.25, "v2": 0.35, "v3-small": 0.5, "v4-conv-s": 0.35}  # the narrowest that timm and we both have
PREDICTED = "images/val/0 images/val/1 images/val/2 images/val/3"  # one batch: how several are cut is up to threads
SLOW, SLOW_NETWORK = (".pte", ".mlpackage", ".pt2"), "v3-small"  # 10 to 40 s a file; it has every kind of operation
RESOLUTION, CLASSES = 64, 10
SCALED = (("v1", 0.3, 96), ("v2", 1.3, 96), ("v3-large-minimalistic", 0.5, 160), ("v4-hybrid-m", 0.75, 128))
SHOWN = ("v1", "v2", "v3-small", "v4-conv-s")
PACKAGED = ("cifar10-v2", "cifar10-v2-0.5", "cifar10-v2-0.25", "cifar10-v1-0.25")
TRAINING = "train digits --arch v1 --alpha .25 --resolution 32 --recipe cifar --epochs 2 --seed 0 --workers 0"
INT8 = {
    "int8": "",
    "mixed": "--mixed --max-drop 1",
    "equalized": "--equalize --calibration percentile",
    "qat": "--qat 1",
}
TIMEOUT_S = 400  # several times what the longest takes on two cores
Digests = dict[str, str]
Job = Callable[[], Digests]


class FailedError(Exception):
    """A call of the command line that didn't end with 0; its text is the last line of what it said."""


class Recorder:
    """Runs one checkout's command line in a folder of its own, by relative paths: cards keep the names of files."""

    def __init__(self, checkout: Path, work: Path) -> None:
        self.work = work
        # One thread in each process: two run side by side, and float sums are then of one order.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        plain = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
        self.env = {**os.environ, **threads, **plain, "PYTHONPATH": str(checkout)}
        find = "import importlib.util as u; print(u.find_spec('mobilenets').origin)"
        found = Path(self.python("-c", find).strip())
        if not found.is_relative_to(checkout):
            raise SystemExit(f"{checkout}: python takes mobilenets from {found} instead")

    def python(self, *arguments: str) -> str:
        command = [sys.executable, *arguments]
        try:
            done = subprocess.run(
                command, cwd=self.work, env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as e:
            raise FailedError(f"no answer in {TIMEOUT_S} s") from e
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise FailedError(lines[-1].strip() if lines else f"exit code {done.returncode}")
        return done.stdout

    def run(self, command: str) -> str:
        """What a verb prints."""
        return self.python("-m", "mobilenets", *command.split())

    def read(self, command: str) -> Any:
        return json.loads(self.run(f"{command} --json"))

    def printed(self, key: str, command: str) -> Job:
        """Digest of the bytes that a verb prints."""
        return lambda: {f"{key}: text": attempt(lambda: digest(self.run(command).encode()))}

    def answered(self, key: str, command: str, lines: bool = False) -> Job:
        """Digest of what a verb answers, as canonical JSON; `lines`: it gives a JSON object a line."""

        def answer() -> str:
            text = self.run(f"{command} --json")
            return canonical([json.loads(line) for line in text.splitlines()] if lines else json.loads(text))

        return lambda: {key: attempt(answer)}

    # ---- jobs that make files ----------------------------------------------------------------------------------------

    def bundle(self, key: str, command: str, out: str, inside: str = "") -> Digests:
        """Digests of the bundle that `command` writes to `out` (a run has it `inside`): its weights' bytes, its card.

        The card says when it was made, and with which versions; a file that is exported from the bundle has the digest
        of all that in it. So the bundle that goes on has neither, and a digest that is right.
        """
        folder = self.work / out / inside

        def card() -> str:
            self.run(f"{command} --out {out}")
            card = {**json.loads((folder / "card.json").read_text()), "created": "", "versions": {}}
            del card["digest"]
            card["digest"] = canonical(card)
            (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
            return str(card["digest"])

        return {
            f"{key}: card": attempt(card),
            f"{key}: weights": attempt(lambda: digest((folder / "weights.safetensors").read_bytes())),
        }

    def imported(self, name: str) -> Digests:
        """A network of timm with seeded weights as a float bundle, and as an int8 one."""
        weights = self.work / f"{name}.safetensors"
        options = f"--arch {name} --resolution {RESOLUTION} --labels labels.txt"
        return {
            f"timm {name}: bytes": digest(weights.read_bytes()),
            **self.bundle(f"import {name}", f"import {weights.name} {options}", f"{name}-float32"),
            **self.bundle(f"quantize {name}", f"quantize {name}-float32 images", f"{name}-int8"),
        }

    def exported(self, name: str, suffix: str, precision: str) -> Job:
        """Digests of an exported file and of what it says of the images."""

        def export() -> Digests:
            key, path = f"export {name} {suffix[1:]} {precision}", f"{name}-{precision}{suffix}"
            source = f"{name}-{'int8' if precision == 'int8' else 'float32'}"

            def written() -> str:
                self.run(f"export {source} images --precision {precision} --out {path}")
                return content(self.work / path)

            out = {f"{key}: bytes": attempt(written)}
            if suffix == ".mlpackage" and sys.platform != "darwin":  # it runs there alone
                return out
            return out | self.answered(f"{key}: answers", f"predict {path} {PREDICTED}", lines=True)()

        return export

    def trained(self) -> Digests:
        """A short training, and the ways to int8 from it."""
        out = self.bundle("train", TRAINING, "run", "float")
        for name, options in INT8.items():
            out |= self.bundle(f"quantize run, {name}", f"quantize run {options}", f"run-{name}")
        return out

    # ---- all of it ---------------------------------------------------------------------------------------------------

    def stages(self, every: bool) -> Iterator[list[Job]]:
        """Jobs that can run side by side; those of a stage need the files of the one before.

        `every`: all formats of all networks.
        """
        listed = [(row["arch"], row["alpha"], row["resolution"]) for row in self.read("list")]  # if not this, nothing
        points = dict.fromkeys([*listed, *SCALED])  # a network's layers are in cost's JSON
        yield [
            self.trained,
            *(lambda name=name: self.imported(name) for name in NETWORKS),
            self.answered("list", "list"),
            self.answered("recipes", "recipes"),
            self.answered("reproduce", "reproduce"),
            self.answered("reproduce errata", "reproduce errata"),
            *(self.answered(f"cost {n} {a:g}-{r}", f"cost {n} --alpha {a} --resolution {r}") for n, a, r in points),
            *(self.printed(f"cost {n} --layers", f"cost {n} --layers") for n in SHOWN),
            *(self.printed(f"explain {n}", f"explain {n}") for n in SHOWN),
            *(self.shown(n) for n in PACKAGED),
        ]
        yield [
            self.exported(name, suffix, precision)
            for suffix in sorted(FORMATS, key=lambda x: x not in SLOW)  # the long ones first
            for name in NETWORKS
            if every or suffix not in SLOW or name == SLOW_NETWORK
            for precision in FORMATS[suffix]
        ]

    def shown(self, name: str) -> Job:
        """A packaged network's card, without the folder it lies in."""
        return lambda: {f"show {name}": attempt(lambda: canonical([*self.read(f"show {name}").values()]))}


def attempt(make: Callable[[], str]) -> str:
    """What `make` gives, or how it failed: whatever a rebuild breaks, the other items are still told."""
    try:
        return make()
    except Exception as e:
        return f"failed: {e if isinstance(e, FailedError) else type(e).__name__}"  # others' texts have paths in them


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def content(path: Path) -> str:
    """Digest of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return digest(path.read_bytes())
    # A Core ML package's manifest names its two files by random identifiers, and says no more.
    files = [p for p in path.rglob("*") if p.is_file() and p.name != "Manifest.json"]
    return canonical({str(p.relative_to(path)): digest(in_order(p)) for p in files})


def in_order(path: Path) -> bytes:
    """A file's bytes; of a Core ML model, with the entries of its protobuf's maps in order: they are written in any."""
    if path.suffix != ".mlmodel":
        return path.read_bytes()
    from coremltools.proto import Model_pb2

    model: bytes = Model_pb2.Model.FromString(path.read_bytes()).SerializeToString(deterministic=True)
    return model


# ---- what goes in ----------------------------------------------------------------------------------------------------


def draw_images(work: Path) -> None:
    """Ten classes of images: coarse noise around a colour of the class, made smooth."""
    rng = np.random.default_rng(0)
    (work / "labels.txt").write_text("".join(f"{c}\n" for c in range(CLASSES)))
    for c in range(CLASSES):
        colour = rng.uniform(60, 200, 3)
        for split, count in (("train", 4), ("val", 2)):
            folder = work / "images" / split / str(c)
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = np.clip(rng.normal(colour, 60, (6, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


def draw_weights(name: str, work: Path) -> None:
    """A state dict of timm's network with random weights, and BatchNorms that fit what they see.

    Random networks blow up the least difference. Where int8 overflows on processors without VNNI, that is too much for
    an export's proof; so one class is always the likeliest by far, and the others' probabilities tell about the rest.
    """
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models import efficientnet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    makers: dict[str, Callable[..., Any]] = {
        # timm has no name for one of this width.
        "v1": lambda **k: efficientnet._gen_mobilenet_v1("mobilenetv1_100", channel_multiplier=NETWORKS["v1"], **k),
        "v2": timm.models.mobilenetv2_035,
        "v3-small": timm.models.mobilenetv3_small_050,
        "v4-conv-s": timm.models.mobilenetv4_conv_small_035,
    }
    net = makers[name](num_classes=CLASSES).train()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 0.7, 1.3)
            torch.nn.init.normal_(m.bias, 0, 0.2)
            m.momentum = None  # the average of all that it sees
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.randn(32, 3, 8, 8), (RESOLUTION,) * 2, mode="bicubic")
        for _ in range(3):
            net(images)
        net.classifier.weight *= 0.1 / net.eval()(images).std(0).mean()
        net.classifier.bias -= net(images).mean(0)
        net.classifier.bias[3] += 3
    save_file(net.state_dict(), work / f"{name}.safetensors")


# ---- the two commands ------------------------------------------------------------------------------------------------


def record(out: Path, checkout: Path, work: Path, every: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    recorder, start = Recorder(checkout.resolve(), work), time.monotonic()
    digests: Digests = {}
    draw_images(work)
    for name in NETWORKS:
        draw_weights(name, work)
    for jobs in recorder.stages(every):
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(job) for job in jobs]
            for i, done in enumerate(as_completed(running), 1):
                for key, value in done.result().items():
                    print(f"{time.monotonic() - start:4.0f} s  {i}/{len(jobs)}  {key}  {value[:16]}", flush=True)
            digests |= {key: value for done in running for key, value in done.result().items()}
    out.write_text(json.dumps(digests, indent=2) + "\n")
    failed = [key for key, value in digests.items() if value.startswith("failed")]
    print(*(f"{key}: {digests[key]}" for key in failed), sep="\n")
    print(f"{out}: {len(digests)} items, {len(failed)} of them failed; {time.monotonic() - start:.0f} s")


def compare(before: Path, after: Path) -> bool:
    """Print what is the same, counted by verb, and each item that differs; whether none does."""
    a, b = (json.loads(p.read_text()) for p in (before, after))
    keys = dict.fromkeys([*a, *b])
    differ = [k for k in keys if a.get(k) != b.get(k)]
    total, changed = (Counter(k.split()[0].rstrip(":") for k in ks) for ks in (keys, differ))
    print(f"{'what':<12}{'items':>6}{'same':>6}{'differ':>8}")
    for what, count in total.items():
        print(f"{what:<12}{count:>6}{count - changed[what]:>6}{changed[what]:>8}")
    for k in differ:
        print(f"differs: {k}\n  {a.get(k, 'not there')}\n  {b.get(k, 'not there')}")
    print(f"{len(differ)} of {len(keys)} items differ" if differ else f"all {len(keys)} items are the same")
    return not differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    recording = modes.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--checkout", type=Path, default=Path(__file__).parents[1])
    recording.add_argument("--work", type=Path, help="an empty folder for what is made, to look at it afterwards")
    recording.add_argument("--all", action="store_true", help="slow formats of every network: three times as long")
    comparing = modes.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    a = parser.parse_args()
    if a.mode == "compare":
        raise SystemExit(not compare(a.before, a.after))
    with tempfile.TemporaryDirectory() as folder:
        record(a.out, a.checkout, (a.work or Path(folder)).resolve(), a.all)


if __name__ == "__main__":
    main()
