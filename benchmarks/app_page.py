"""The page of `mobilenets app` in Chromium: how soon it labels a photo, and what a frame of a camera takes.

    taskset -c 0 python benchmarks/app_page.py [PHOTO ...] [--rounds 5] [--out app_page.csv]

V1 .25-224 int8 with 1000 classes and random weights (no time depends on them). The camera is Chromium's fake one, 640 x
480 at 60 frames a second, of the photos (noise, if none are named). Everything, server, browser and network, is on one
core with `taskset`. A frame is from the camera's call to the drawing's end: copied and made smaller, run in the worker,
drawn. Each number is of the quietest of the rounds; those of a round are what the page shows after some seconds. On
Linux also the processor time of a frame, which other programs inflate less: of the page's own thread, of the worker's.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mobilenets import console, files
from mobilenets.arch import zoo
from mobilenets.deploy import app, latency
from mobilenets.model.bundle import random_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import browsing

SIZE, RATE = (640, 480), 60
LIVE_SECONDS = 4
COLUMNS = ["what", "value", "unit", "hardware"]


def pictures(paths: list[Path]) -> list[Image.Image]:
    if paths:
        return [ImageOps.fit(Image.open(path).convert("RGB"), SIZE) for path in paths]
    noise = np.random.default_rng(0).integers(0, 256, (4, 60, 80, 3), np.uint8)
    return [Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC) for pixels in noise]


def processor_ms(thread: str) -> float:
    """Processor time of the browsers' pages in threads of this name; a page's own is called as the program."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" not in (process / "cmdline").read_bytes():
                continue
            for task in (process / "task").iterdir():
                name, _, numbers = (task / "stat").read_text().partition("(")[2].rpartition(")")
                if name.startswith(thread):
                    total += sum(map(int, numbers.split()[11:13]))
        except OSError:  # it has ended
            continue
    return 1e3 * total / os.sysconf("SC_CLK_TCK")


COUNTED = """() => {
  const own = CanvasRenderingContext2D.prototype.getImageData;
  window.frames_ = 0;
  CanvasRenderingContext2D.prototype.getImageData = function (...a) { window.frames_++; return own.apply(this, a); };
}"""


def round_of(browser: object, address: str, photo: Path) -> dict[str, float]:
    """Milliseconds, and frames a second, of one visit by a browser that has never been there."""
    with browsing.visit(browser, browsing.PHONE) as visit:
        page, begun = visit.page, time.perf_counter()
        page.goto(address)
        page.wait_for_selector("#camera:enabled")
        ready = time.perf_counter()
        page.set_input_files("#file", str(photo))
        page.wait_for_selector("#rows li")
        labelled = time.perf_counter()
        page.click("#camera")
        page.evaluate(COUNTED)
        page.wait_for_timeout(1000)
        threads = {"the page's own": "chrom", "the worker's": "DedicatedWorker"}
        before = {name: processor_ms(thread) for name, thread in threads.items()}
        begin = page.evaluate("window.frames_")
        page.wait_for_timeout(1000 * LIVE_SECONDS)
        shown = max(1, page.evaluate("window.frames_") - begin)
        spent = {
            f"processor time of a frame in {name} thread, ms": (processor_ms(thread) - before[name]) / shown
            for name, thread in threads.items()
        }
        told = page.inner_text("#speed")
        fps, frame, network = (float(n) for n in re.findall(r"[\d.]+", told))
        return {
            "page ready, ms": 1e3 * (ready - begun), "first label after opening, ms": 1e3 * (labelled - begun),
            "a frame, ms": frame, "of it the network, ms": network, "frames a second": fps, **spent,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a .csv to write")
    a = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    machine = f"{latency.machine()}, on {console.many(cores, 'core')}"
    console.note(machine)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_bundle(zoo.arch("v1", 0.25, 224, 1000), "int8").save(folder / "v1_25_int8")
        made = app.site([folder / "v1_25_int8"], folder / "site")
        shown = pictures(a.photos)
        shown[0].save(folder / "photo.jpg")
        camera = browsing.write_video(folder / "camera.y4m", shown, RATE)
        with browsing.served(made.path) as address, browsing.browser(camera) as browser:
            rounds = [round_of(browser, address, folder / "photo.jpg") for _ in range(a.rounds)]
    rows = [["download before the network", f"{made.page_bytes / 1e3:.0f}", "kB", machine]]
    rows.append(["the network's file", f"{made.networks[0].size_bytes / 1e3:.0f}", "kB", machine])
    for name in rounds[0]:
        best = (max if name.startswith("frames") else min)(r[name] for r in rounds)
        what, _, unit = name.partition(", ")
        rows.append([what, f"{best:.1f}", unit, machine])
    for what, value, unit, _ in rows:
        console.note(f"{what:45} {value:>8} {unit}")
    if a.out:
        with files.atomic_file(a.out) as path, path.open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
