"""Another's embedding network as ONNX, with no card inside: what it takes is stated by whoever gives it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mobilenets import files
from mobilenets.arguments import checked
from mobilenets.data.alignment import Template, template
from mobilenets.errors import UserError
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.tasks.embed.scores import VECTOR
from mobilenets.tasks.task import Outputs

Norm = Literal["imagenet", "signed", "signed128", "unit", "raw"]
RGB = tuple[float, float, float]
NORMS: dict[Norm, tuple[RGB, RGB]] = {  # mean and standard deviation of pixels from 0 to 255
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "signed": ((127.5,) * 3, (127.5,) * 3),
    "signed128": ((127.5,) * 3, (128.0,) * 3),
    "unit": ((0.0,) * 3, (255.0,) * 3),
    "raw": ((0.0,) * 3, (1.0,) * 3),
}


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": f"Of another's ONNX file of embeddings: {text}"})


@checked
@dataclass(frozen=True)
class Foreign:
    """What another's network takes, which its file doesn't say."""

    foreign_norm: Literal["imagenet", "signed", "signed128", "unit", "raw"] | None = _doc(
        None,
        "how pixels become its input: imagenet (ImageNet's mean and deviation), signed (-1 to 1), signed128 "
        "((x - 127.5) / 128), unit (0 to 1), raw.",
    )
    foreign_template: str | None = _doc(None, "the landmarks' template that it takes faces in: arcface, ...")
    foreign_flip: bool = _doc(False, "the sum of each image's vector and its mirror image's.")

    @property
    def given(self) -> bool:
        return self.foreign_norm is not None


class ForeignNetwork:
    """A file of another's that gives one vector for an image, through ONNX Runtime on the CPU.

    Called with uint8 [N, H, W, 3] of `preprocess`, it gives vectors of length 1, [N, dim], by the name that the task
    embed has for them.
    """

    name = "onnxruntime"
    concurrent = True

    def __init__(self, path: Path, how: Foreign, threads: int) -> None:
        from mobilenets.deploy.engines import module

        if path.suffix != ".onnx" or not path.is_file():
            raise UserError(f"{path}: --foreign-norm is for another's .onnx file")
        runtime = module("onnxruntime")
        try:
            self.session = runtime.session(str(path), threads)
        except Exception as e:  # the runtime's own exception types aren't public
            raise UserError(f"{path}: not a readable ONNX file: {str(e).splitlines()[0][:200]}") from e
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or len(outputs) != 1 or len(outputs[0].shape) != 2:
            raise UserError(f"{path}: not a network of embeddings: it has to take one image and give one vector")
        self.channels_last = shape[3] == 3
        sides = shape[1:3] if self.channels_last else shape[2:]
        dim = outputs[0].shape[1]
        if not all(isinstance(n, int) for n in (*sides, dim)):
            raise UserError(f"{path}: the file leaves open how large its images or its vectors are")
        mean, std = NORMS[how.foreign_norm or "raw"]
        self.input, self.batch = inputs[0].name, shape[0] if isinstance(shape[0], int) else None
        self.preprocess = Preprocess(max(sides), 1.0, mean, std, size=(sides[0], sides[1]), framing="stretch")
        self.template: Template | None = template(how.foreign_template) if how.foreign_template else None
        self.flip, self.dim, self.path = how.foreign_flip, int(dim), path

    @property
    def digest(self) -> str:
        return files.sha256(self.path)

    def __call__(self, images: Pixels) -> Outputs:
        v = self._run(images)
        if self.flip:
            v = v + self._run(images[:, :, ::-1])
        return {VECTOR: np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12), np.float32)}

    def _run(self, images: Pixels) -> npt.NDArray[np.float32]:
        x = self.preprocess.normalize(images)
        if self.channels_last:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        step = self.batch or max(len(x), 1)
        out = []
        for i in range(0, len(x), step):
            piece = x[i : i + step]
            whole = np.concatenate([piece, np.repeat(piece[-1:], step - len(piece), 0)])
            out.append(self.session.run(None, {self.input: whole})[0][: len(piece)])
        return np.asarray(np.concatenate(out), np.float32)
