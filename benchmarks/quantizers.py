"""Post-training int8 by four quantizers on the same network, calibration images and scored images.

    python benchmarks/quantizers.py BUNDLE IMAGES [--calibration 128] [--out CSV]

BUNDLE: a float bundle. IMAGES: class folders in the network's names; part of them calibrates, all others are scored.
Ours, onnxruntime's `quantize_static`, NNCF on the ONNX file, and PT2E of torchao with ExecuTorch's XNNPACK quantizer,
each with weights per output channel, and once with one scale per layer where it has the choice. All but the last give
an ONNX file that is scored and timed (one thread, in turn) in onnxruntime; the last is scored in PyTorch. Needs
`pip install nncf onnx` and the extra `executorch`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mobilenets import console
from mobilenets.compression import quantize
from mobilenets.compression.scheme import DEFAULT, Scheme
from mobilenets.data import dataset as data
from mobilenets.data.open import open_data
from mobilenets.deploy import bench
from mobilenets.deploy.engines.onnxruntime import session
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle, find_bundle
from mobilenets.model.images import Pixels

Run = Callable[[Pixels], np.ndarray]
COLUMNS = ("quantizer", "images", "top1_percent", "as_float_percent", "size_mb", "latency_ms", "seconds")


def ours(bundle: Bundle, images: Pixels, path: Path, scheme: Scheme = DEFAULT) -> None:
    path.write_bytes(onnx_model(quantize.quantize_bundle(bundle, images, scheme)))


def ort_static(source: Path, images: Pixels, path: Path, per_channel: bool, method: str) -> None:
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter({"image": images[i : i + 1]} for i in range(len(images)))

        def get_next(self) -> dict[str, Pixels] | None:
            return next(self.left, None)

    q.quantize_static(
        source, path, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=per_channel,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        calibrate_method=getattr(q.CalibrationMethod, method),
    )  # fmt: skip


def nncf_static(source: Path, images: Pixels, path: Path) -> None:
    import nncf
    import onnx

    dataset = nncf.Dataset([{"image": images[i : i + 1]} for i in range(len(images))])
    onnx.save(nncf.quantize(onnx.load(source), dataset, subset_size=len(images)), path)


def pt2e(bundle: Bundle, images: Pixels, per_channel: bool) -> Run:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    normalize = bundle.card.preprocess.normalize
    example = torch.from_numpy(normalize(images[:2]))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(simulate.float_model(bundle), (example,), dynamic_shapes=shapes).module()
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel)
    prepared = prepare_pt2e(program, xnnpack.XNNPACKQuantizer().set_global(config))
    for i in range(0, len(images), 8):
        prepared(torch.from_numpy(normalize(images[i : i + 8])))
    net = convert_pt2e(prepared)
    return lambda pixels: net(torch.from_numpy(normalize(pixels))).numpy()


def onnx_run(path: Path) -> Run:
    s = session(str(path), 1)
    return lambda pixels: s.run(None, {"image": pixels})[0]


def latencies(paths: dict[str, Path], resolution: int) -> dict[str, float]:
    """Milliseconds of one image on one thread, in turn; the median call of the quietest round."""
    image = np.random.default_rng(0).integers(0, 256, (1, resolution, resolution, 3), dtype=np.uint8)
    runs = {name: onnx_run(p) for name, p in paths.items()}
    rounds: dict[str, list[list[float]]] = {name: [] for name in runs}
    with bench.pinned(1):
        for _ in range(7):
            for name, run in runs.items():
                times = []
                for _ in range(30):
                    start = time.perf_counter()
                    run(image)
                    times.append(time.perf_counter() - start)
                rounds[name].append(times)
    return {name: bench.quietest_ms(r) for name, r in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images")
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--limit", type=int, default=2000, help="images scored at most")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    bundle = Bundle.load(find_bundle(a.bundle))
    d = data.in_order(open_data(a.images), bundle.card.labels)
    split = d.split("all")
    order = np.random.default_rng(0).permutation(len(split))
    calibration = data.gather(split.subset(order[: a.calibration]), bundle.card.preprocess).pixels
    scored = data.gather(split.subset(order[a.calibration :][: a.limit]), bundle.card.preprocess)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        root = Path(folder)
        source = root / "float.onnx"
        source.write_bytes(onnx_model(bundle))
        makers: dict[str, Callable[[Path], None]] = {
            "ours, per channel": lambda p: ours(bundle, calibration, p),
            "ours, per layer": lambda p: ours(bundle, calibration, p, Scheme(per_layer=True)),
            "onnxruntime, per channel, min-max": lambda p: ort_static(source, calibration, p, True, "MinMax"),
            "onnxruntime, per channel, percentile": lambda p: ort_static(source, calibration, p, True, "Percentile"),
            "onnxruntime, per layer, min-max": lambda p: ort_static(source, calibration, p, False, "MinMax"),
            "NNCF, per channel": lambda p: nncf_static(source, calibration, p),
        }
        files, seconds = {"float32": source}, {"float32": 0.0}
        runs: dict[str, Run] = {}
        for i, (name, make) in enumerate(makers.items()):
            start = time.monotonic()
            with torch.inference_mode(False):
                make(root / f"{i}.onnx")
            files[name], seconds[name] = root / f"{i}.onnx", time.monotonic() - start
        runs = {name: onnx_run(p) for name, p in files.items()}
        for name, per_channel in (("PT2E, per channel", True), ("PT2E, per layer", False)):
            start = time.monotonic()
            with torch.inference_mode(False):
                runs[name] = pt2e(bundle, calibration, per_channel)
            seconds[name] = time.monotonic() - start
        ms = latencies(files, bundle.card.arch.resolution)
        parts = [scored.pixels[i : i + 8] for i in range(0, len(scored.pixels), 8)]
        answers = {name: np.concatenate([run(p) for p in parts]).argmax(1) for name, run in runs.items()}
        rows = [
            {
                "quantizer": name,
                "images": len(got),
                "top1_percent": f"{100 * statistics.fmean(got == scored.targets):.2f}",
                "as_float_percent": f"{100 * statistics.fmean(got == answers['float32']):.2f}",
                "size_mb": f"{files[name].stat().st_size / 1e6:.2f}" if name in files else "",
                "latency_ms": f"{ms[name]:.3f}" if name in ms else "",
                "seconds": f"{seconds[name]:.1f}",
            }
            for name, got in answers.items()
        ]
    table = console.table(f"{bundle.card.arch.title}, {a.images}", list(COLUMNS), left=("quantizer",))
    for row in rows:
        table.add_row(*(str(row[c]) for c in COLUMNS))
    console.note(table)
    if a.out:
        with a.out.open("w", newline="") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
