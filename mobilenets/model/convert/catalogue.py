"""Weights that others publish, by name: what they are of, where they are, their licence and accuracy. No torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from mobilenets.arch import cost, published, zoo
from mobilenets.errors import unknown
from mobilenets.model.card import Metric
from mobilenets.model.convert.foreign import IMAGENET_PREPROCESS, TF_PREPROCESS, Stated, prepared
from mobilenets.model.convert.sidecars import CONFIG, timm_arch

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
SLIM = {
    "v1": "http://download.tensorflow.org/models/mobilenet_v1_2018_08_02",
    "v2": "https://storage.googleapis.com/mobilenet_v2/checkpoints",
    "v3": "https://storage.googleapis.com/mobilenet_v3/checkpoints",
}
TORCHVISION = "https://download.pytorch.org/models"
HUB = "https://huggingface.co"
LIBRARIES = ("keras", "slim", "torchvision", "timm")
TENSORS = "model.safetensors"  # of a repository of timm's on the Hub

# torchvision's documentation of its weights: builder, weights, file, top-1, short side that images are resized to.
_TORCHVISION = (
    ("mobilenet_v2", "IMAGENET1K_V1", "mobilenet_v2-b0353104.pth", 71.878, 256),
    ("mobilenet_v2", "IMAGENET1K_V2", "mobilenet_v2-7ebf99e0.pth", 72.154, 232),
    ("mobilenet_v3_large", "IMAGENET1K_V1", "mobilenet_v3_large-8738ca79.pth", 74.042, 256),
    ("mobilenet_v3_large", "IMAGENET1K_V2", "mobilenet_v3_large-5c1a4163.pth", 75.274, 232),
    ("mobilenet_v3_small", "IMAGENET1K_V1", "mobilenet_v3_small-047dcff4.pth", 67.668, 256),
)
# timm's results/results-imagenet.csv: network, resolution that it was trained at, top-1 there. None: not in it.
_TIMM = (
    ("mobilenetv1_100.ra4_e3600_r224_in1k", 224, 75.384),
    ("mobilenetv1_125.ra4_e3600_r224_in1k", 224, 76.928),
    ("mobilenetv2_050.lamb_in1k", 224, 65.93),
    ("mobilenetv2_100.ra_in1k", 224, 72.936),
    ("mobilenetv2_140.ra_in1k", 224, 76.528),
    ("mobilenetv3_large_100.miil_in21k_ft_in1k", 224, 77.91),
    ("mobilenetv3_large_100.ra4_e3600_r224_in1k", 224, 76.31),  # its model card
    ("mobilenetv3_large_100.ra_in1k", 224, 75.786),
    ("mobilenetv3_small_050.lamb_in1k", 224, 57.924),
    ("mobilenetv3_small_075.lamb_in1k", 224, 65.266),
    ("mobilenetv3_small_100.lamb_in1k", 224, 67.638),
    ("mobilenetv4_conv_small_050.e3000_r224_in1k", 224, 64.76),  # timm's README
    ("mobilenetv4_conv_small.e1200_r224_in1k", 224, 73.436),
    ("mobilenetv4_conv_small.e2400_r224_in1k", 224, 73.73),
    ("mobilenetv4_conv_small.e3600_r256_in1k", 256, None),
    ("mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k", 384, 82.776),  # timm's documentation
    ("mobilenetv4_conv_medium.e500_r224_in1k", 224, 79.092),
    ("mobilenetv4_conv_medium.e500_r256_in1k", 256, 79.922),
    ("mobilenetv4_conv_large.e500_r256_in1k", 256, 81.864),
    ("mobilenetv4_conv_large.e600_r384_in1k", 384, 82.974),
    ("mobilenetv4_hybrid_medium.e200_r256_in12k_ft_in1k", 256, 82.362),
    ("mobilenetv4_hybrid_medium.e500_r224_in1k", 224, 80.438),
    ("mobilenetv4_hybrid_medium.ix_e550_r256_in1k", 256, 81.474),
    ("mobilenetv4_hybrid_medium.ix_e550_r384_in1k", 384, 82.96),
    ("mobilenetv4_hybrid_large.e600_r384_in1k", 384, 83.822),
    ("mobilenetv4_hybrid_large.ix_e600_r384_in1k", 384, 83.984),
    ("tf_mobilenetv3_large_075.in1k", 224, 73.448),
    ("tf_mobilenetv3_large_100.in1k", 224, 75.514),
    ("tf_mobilenetv3_large_minimal_100.in1k", 224, 72.27),
    ("tf_mobilenetv3_small_075.in1k", 224, 65.732),
    ("tf_mobilenetv3_small_100.in1k", 224, 67.932),
    ("tf_mobilenetv3_small_minimal_100.in1k", 224, 62.894),
)
# The files of Keras's V3 have no name for each width alone; keras/applications/mobilenet_v3.py gives their MD5.
_KERAS_V3 = {
    ("v3-large", 1.0): "59e551e166be033d707958cf9e29a6a7", ("v3-large", 0.75): "765b44a33ad4005b3ac83185abf1d0eb",
    ("v3-small", 1.0): "8768d4c2e7dee89b9d02b2d03d65d862", ("v3-small", 0.75): "cb65d4e5be93758266aa0a7f2c6708b7",
    ("v3-large-minimalistic", 1.0): "675e7b876c45c57e9e63e6d90a36599c",
    ("v3-small-minimalistic", 1.0): "99cd97fb2fcdad2bf028eb838de69e37",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A network's weights as they are published: `top1` in percent of ImageNet at `resolution`, None if nobody says.

    `files` are their addresses, that of the tensors first; `said` is what else is said of them, where no file among
    these says it; `md5` is the first file's, where it is published.
    """

    name: str
    arch: str
    alpha: float
    resolution: int
    top1: float | None
    licence: str
    files: tuple[str, ...]
    said: Stated
    md5: str = ""

    @property
    def publisher(self) -> str:
        """Who publishes them: keras, slim, torchvision, timm."""
        return self.name.partition(":")[0]

    @property
    def size(self) -> int:
        """Bytes that its trained numbers take; a file of them alone is a few percent larger."""
        return 4 * cost.count(zoo.arch(self.arch, self.alpha, self.resolution)).params

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Their accuracy, as it was published: Keras's weights are TF-slim's."""
        by = "with TF-slim's weights" if self.publisher in ("keras", "slim") else f"by {self.publisher}"
        return (Metric("top1", self.top1, f"ImageNet, as published {by}", "val", 50_000),) if self.top1 else ()


@functools.cache
def weights() -> Mapping[str, Published]:
    """All of them by name."""
    return {w.name: w for w in (*_keras(), *_slim(), *_torchvision(), *_timm())}


def is_name(source: str) -> bool:
    """Whether a source is the name of published weights, and not a file."""
    return ":" in source and source.partition(":")[0] in LIBRARIES


def find(name: str) -> Published:
    """Those called so, also as keras:v2-1-224 or, for its best, torchvision:mobilenet_v2. Raises `UserError`."""
    known = weights()
    if name in known:
        return known[name]
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise unknown("library of weights", library, LIBRARIES)
    own = [w for w in known.values() if w.publisher == library]
    if library in ("torchvision", "timm"):
        found = [w for w in own if w.name.startswith(f"{name}.")]
    else:
        said = re.fullmatch(r"(.+?)-(\d+(?:\.\d+)?)-(\d+)", rest)
        asked = (said[1], float(said[2]), int(said[3])) if said else None
        found = [w for w in own if asked == (w.arch, w.alpha, w.resolution)]
    if found:
        return max(found, key=lambda w: w.top1 or 0.0)
    raise unknown(f"weights of {library}", rest, [w.name.partition(":")[2] for w in own])


def of_digest(sha256: str) -> Published | None:
    """The weights of torchvision's whose file has this digest: its name ends with the digest's start."""
    for w in _torchvision():
        if sha256.startswith(PurePosixPath(w.files[0]).stem.rpartition("-")[2]):
            return w
    return None


def mirrored(address: str) -> str:
    """Where to ask for an address: $HF_ENDPOINT instead of the Hub, $MOBILENETS_MIRROR before any.

    A mirror at http://mirror has https://host/path as http://mirror/host/path.
    """
    if (endpoint := os.environ.get("HF_ENDPOINT")) and address.startswith(f"{HUB}/"):
        return endpoint.rstrip("/") + address.removeprefix(HUB)
    if mirror := os.environ.get("MOBILENETS_MIRROR"):
        return f"{mirror.rstrip('/')}/{address.partition('://')[2]}"
    return address


def file_name(address: str) -> str:
    """What a file is called here."""
    return PurePosixPath(address).name


def _grid() -> Iterator[tuple[str, float, int, float]]:
    """Networks, widths and resolutions that TensorFlow published, with their accuracy."""
    for arch in ("v1", "v2", "v3-large", "v3-small", "v3-large-minimalistic", "v3-small-minimalistic"):
        for alpha, by_resolution in published.TOP1[arch].items():
            for resolution, top1 in by_resolution.items():
                yield arch, alpha, resolution, top1


def _tf(arch: str, alpha: float, side: int) -> Stated:
    preprocess = dataclasses.replace(TF_PREPROCESS, resolution=side)
    return prepared(preprocess, arch=arch, alpha=alpha, licence="Apache-2.0", padding="same", bn_eps=1e-3)


def _keras() -> Iterator[Published]:
    for arch, alpha, side, top1 in _grid():
        if arch == "v1":
            width = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}[alpha]
            file = f"mobilenet/mobilenet_{width}_{side}_tf.h5"
        elif arch == "v2":
            file = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{side}.h5"
        else:
            size = arch.removeprefix("v3-").replace("-", "_")
            file = f"mobilenet_v3/weights_mobilenet_v3_{size}_{side}_{alpha}_float.h5"
        name, md5 = f"keras:{arch}-{alpha}-{side}", _KERAS_V3.get((arch, alpha), "")
        yield Published(name, arch, alpha, side, top1, "Apache-2.0", (f"{KERAS}/{file}",), _tf(arch, alpha, side), md5)


def _slim() -> Iterator[Published]:
    for arch, alpha, side, top1 in _grid():
        version = arch[:2]
        archive = f"{arch}_{side}_{alpha}_float" if version == "v3" else f"mobilenet_{version}_{alpha}_{side}"
        name = f"slim:{arch}-{alpha}-{side}"
        file = f"{SLIM[version]}/{archive}.tgz"
        yield Published(name, arch, alpha, side, top1, "Apache-2.0", (file,), _tf(arch, alpha, side))


def _torchvision() -> Iterator[Published]:
    for builder, which, file, top1, side in _TORCHVISION:
        arch = builder.removeprefix("mobilenet_").replace("_", "-")
        preprocess = dataclasses.replace(IMAGENET_PREPROCESS, crop=224 / side)
        said = prepared(
            preprocess, arch=arch, alpha=1.0, licence="BSD-3-Clause", padding="symmetric",
            bn_eps=1e-5 if arch == "v2" else 1e-3,
        )  # fmt: skip
        name = f"torchvision:{builder}.{which}"
        yield Published(name, arch, 1.0, 224, top1, "BSD-3-Clause", (f"{TORCHVISION}/{file}",), said)


def _timm() -> Iterator[Published]:
    for network, side, top1 in _TIMM:
        where = f"{HUB}/timm/{network}/resolve/main"
        ours = timm_arch(network)
        assert ours is not None
        files = (f"{where}/{TENSORS}", f"{where}/{CONFIG}")
        said = Stated(arch=ours[0], alpha=ours[1], resolution=side, licence="Apache-2.0")
        yield Published(f"timm:{network}", ours[0], ours[1], side, top1, "Apache-2.0", files, said)
