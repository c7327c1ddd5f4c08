"""The programs in examples/ are built with a network, and answer as the bundle does."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy.engines import c
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle

EXAMPLES = Path(__file__).parents[1] / "examples"
# What the sketch uses of a board's library: its serial line is the program's input and output.
ARDUINO = """
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
struct Line {
  void begin(long) {}
  void setTimeout(long) {}
  size_t readBytes(char *to, size_t n) { return fread(to, 1, n, stdin); }
  void print(const char *s) { fputs(s, stdout); }
  void print(char c) { putchar(c); }
  void print(double v) { printf("%.2f", v); }
  void print(unsigned long v) { printf("%lu", v); }
  void println(const char *s) { puts(s); }
};
static Line Serial;
static unsigned long millis() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ours")]


def has(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool} here")


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(3)
    patches = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return patches.resize((300, 200), Image.Resampling.BICUBIC)


@pytest.fixture
def network(tmp_path: Path, photo: Image.Image) -> tuple[Bundle, Path]:
    known = Bundle.load("cifar10-v1-0.25")
    narrow = dataclasses.replace(known.card.preprocess, crop=0.75)
    known = Bundle(known.card.replace(preprocess=narrow), known.tensors)
    bundle = quantize_bundle(known, known.card.preprocess.fit(photo)[None])
    folder = tmp_path / "network.c-source"
    c.write(bundle, folder, None)
    return bundle, folder


def answer(bundle: Bundle, photo: Image.Image) -> tuple[str, float]:
    shares = TorchEngine(bundle, 1)(bundle.card.preprocess.fit(photo)[None])["probabilities"][0]
    return bundle.card.labels[int(shares.argmax())], 100 * float(shares.max())


@has("cmake")
@has("cc")
@pytest.mark.parametrize("flags", [(), ("-DANY_PROCESSOR=ON",)])
def test_c_and_cmake(network: tuple[Bundle, Path], photo: Image.Image, tmp_path: Path, flags: tuple[str, ...]) -> None:
    bundle, folder = network
    photo.save(tmp_path / "photo.ppm")
    build = tmp_path / "build"
    strict = "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"
    for command in (
        ["cmake", "-S", EXAMPLES / "c-cmake", "-B", build, f"-DNETWORK={folder}", strict, *flags],
        ["cmake", "--build", build],
    ):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([build / "label", tmp_path / "photo.ppm"], capture_output=True, text=True, check=True)
    label, share = done.stdout.rsplit(maxsplit=1)
    wanted, sure = answer(bundle, photo)
    assert label == wanted
    assert abs(float(share.rstrip("%")) - sure) < 3
    refused = subprocess.run([build / "label", folder / "network.h"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "needs a picture" in refused.stderr


@has("gcc")
@has("g++")
def test_the_arduino_sketch(network: tuple[Bundle, Path], photo: Image.Image, tmp_path: Path) -> None:
    bundle, folder = network
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    (tmp_path / "end.cpp").write_text(
        '#include "Arduino.h"\n#include "label.ino"\nint main() { setup(); loop(); return 0; }\n'
    )
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", "-std=c11", *strict, "-c", folder / "network.c", "-o", tmp_path / "network.o"], check=True)
    sketch = EXAMPLES / "arduino" / "label"
    made = tmp_path / "board"
    subprocess.run(
        ["g++", "-std=c++11", *strict, f"-I{folder}", f"-I{sketch}", f"-I{tmp_path}", tmp_path / "end.cpp",
         tmp_path / "network.o", "-lm", "-o", made], check=True,
    )  # fmt: skip
    image = bundle.card.preprocess.fit(photo)
    said = subprocess.run([made], input=image.tobytes(), capture_output=True, check=True).stdout.decode()
    label, sure = answer(bundle, photo)
    assert said.startswith(f"{label} ")
    assert abs(float(said.split()[1].rstrip("%")) - sure) < 1
    assert said.endswith(" ms\n")
