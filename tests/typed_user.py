"""What a user writes, from a folder of pictures to a file that answers: typed, and not guarded by `if __name__ == ...`.

`mypy` checks it with the package; `test_api.py` runs it in a folder with pictures in fl/ and fl.zip, a table t.json.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import mobilenets

settings = mobilenets.Overrides(epochs=1, workers=0)
run = mobilenets.train("fl", arch="v1", alpha=0.25, resolution=32, overrides=settings, out=Path("runs/v1"))
assert run is not None
print(run.card.arch.title, [m.value for m in run.card.metrics])
fitted = mobilenets.fit(
    "fl",
    out="runs/z",
    init="runs/v1",
    budget=mobilenets.Budget(max_size_mb=2),
    overrides=settings,
    table=Path("t.json"),
)
assert fitted is not None
exported = mobilenets.export("runs/v1", "fl", out="m.onnx", precision="int8")
scores = mobilenets.evaluate("m.onnx", "fl")
print(fitted.file, exported.size_bytes, f"{scores.value:.1f}")

model = mobilenets.load(fitted.file)
print(model.predict("fl/val/red/000.png").top[0], model.predict(Image.new("RGB", (40, 40))).top[0][0])
print(len(model.predict(Path("fl"))), [p.error for p in model.predict([np.zeros((9, 9, 3), np.uint8), b"junk"])])
print(model.predict(torch.rand(3, 20, 30)).top[0], len(mobilenets.predict("m.onnx", "fl/val", "fl.zip", top=1)))
print(mobilenets.predict("m.onnx", "fl/val", out="said.jsonl").images, mobilenets.show("m.onnx").cards.keys())

int8 = mobilenets.quantize("runs/v1", "fl", out="int8", keep_float="classifier", images=8)
print(int8.card.precision, mobilenets.Bundle.load("int8").digest == int8.digest)
timing = mobilenets.bench("m.onnx", "runs/v1", batch=1, rounds=1).timings[0]
print(f"{timing.median_ms:.2f} ms", mobilenets.choose(table="t.json").pick.arch.title)
print(mobilenets.cost("v2", alpha=0.5).to_json()["macs"], len(mobilenets.list_networks("v3").entries))
explained = mobilenets.explain("v1")  # of an idea, lessons
print(explained.to_json()["trainable_params"], len(mobilenets.reproduce("v1-table8").results))
print(mobilenets.report("runs/v1").path)

net = mobilenets.create("v1", alpha=0.25, pretrained="runs/v1", num_classes=5)
loss = net(net.preprocess(Image.new("RGB", (50, 40)))[None].repeat(2, 1, 1, 1)).square().mean()
loss.backward()
body = mobilenets.create("v2", alpha=0.35, features_only=True, out_indices=(1, 2, 3, 4))
layers = {f["module"]: str(i) for i, f in enumerate(body.feature_info)}
detector = FasterRCNN(BackboneWithFPN(body, layers, body.feature_info.channels(), 64), 2, min_size=64, max_size=64)
print(net.num_features, len(detector.eval()([torch.rand(3, 64, 64)])))
