"""The one exception that means "the user can fix this": a clear line, exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Something the user gave is wrong. The message says what, and what to do.

    Every kind of it can be made of its message alone: so they are that come from other processes.
    """


class Interrupted(UserError):
    """Ctrl-C. Whatever was being written is gone; whatever was finished is kept."""


class UnknownName(UserError):
    """A name that no table has: a program's own may have it, where it added to the table."""


class ArgumentError(UserError, TypeError):
    """A function was called with arguments that it doesn't have, or of another type than it takes."""


# Packages that an extra installs, by the module that is imported: what it is called, and the extra.
EXTRAS = {
    "torch": ("PyTorch", "train"),
    "torchvision": ("torchvision", "train"),
    "pytorch_lightning": ("PyTorch Lightning", "train"),
    "torchmetrics": ("torchmetrics", "train"),
    "sklearn": ("scikit-learn", "train"),
    "matplotlib": ("matplotlib", "train"),
    "jinja2": ("Jinja", "train"),
    "pyarrow": ("pyarrow", "datasets"),
    "defusedxml": ("defusedxml", "detect"),
    "yaml": ("PyYAML", "detect"),
    "faster_coco_eval": ("faster-coco-eval", "detect"),
    "tensorboard": ("TensorBoard", "train"),
    "mlflow": ("MLflow", "mlflow"),
    "wandb": ("Weights & Biases", "wandb"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "s2sphere": ("s2sphere", "places"),
    "pytorch_metric_learning": ("pytorch-metric-learning", "embed"),
    "torch_pruning": ("torch-pruning", "prune"),
    "usearch": ("usearch", "search"),
    "constriction": ("constriction", "compress"),
    "cryptography": ("cryptography", "update"),
    "segno": ("segno", "measure"),
    "securesystemslib": ("python-tuf", "update"),
    "tuf": ("python-tuf", "update"),
    "fastapi": ("FastAPI", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "prometheus_client": ("prometheus_client", "serve"),
    "av": ("PyAV", "video"),
    "tflite_micro": ("TensorFlow Lite Micro", "micro"),
}


class Missing(UserError):
    """A package of `EXTRAS` isn't installed: `module` is what was imported."""

    def __init__(self, message: str, module: str = "") -> None:
        super().__init__(message)
        self.module = module

    @classmethod
    def of(cls, what: str, module: str) -> Missing:
        """Of `what`, which needs it."""
        needed, extra = EXTRAS[module]
        return cls(f"{what} needs {needed}: pip install 'mobilenets[{extra}]'", module)


@contextlib.contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Turn an import that fails for want of an extra into `Missing`, which says what to install for `what`."""
    try:
        yield
    except ImportError as e:  # as it is, or as what a module that couldn't be imported was raised from
        name = (getattr(e.__cause__, "name", None) or e.name or "").partition(".")[0]
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise Missing.of(what, name) from e
        raise


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that isn't in a table: suggests the nearest one, or lists them all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    shown = name if len(name) <= 100 else f"{name[:100]}..."  # of a file from outside, perhaps
    return UnknownName(f"unknown {what} {shown!r}: {hint}")


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full or read-only disk, or a path that can't be written, met while writing `what`, into a UserError."""
    try:
        yield
    except OSError as e:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EFBIG: "the file would be larger than the system allows",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EEXIST: "a part of the path is a file, not a folder",
            errno.ENOENT: "there is no such folder, and none can be made there",
            errno.EISDIR: "there is a folder of that name",
            errno.ENAMETOOLONG: "the name is too long",
        }
        if e.errno not in reasons:
            raise
        raise UserError(f"can't write {what}: {reasons[e.errno]}; nothing was left half-written") from e
