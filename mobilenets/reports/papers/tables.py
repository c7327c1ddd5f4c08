"""The papers' tables as they were printed: each number as text, beside the network that should give it. No torch.

`counting` counts the networks, `checking` compares. A number is copied from its table once, here or in `published`,
misprints and all; what is wrong with it is in `errata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mobilenets.arch import published

# What a cell counts. weights: no BatchNorm, no biases. params: trainable. folded: weights and the one bias per channel
# that a folded BatchNorm leaves. slim: weights, biases and three of BatchNorm's four numbers per channel. channels and
# memory (16 bits each): the largest map of `Net.side` pixels that outlives a block; next_*: counted from the blocks
# that read such a map instead. peak_*: elements of the largest operation's input and output.
What = Literal[
    "macs", "weights", "params", "folded", "slim", "macs_share", "weights_share", "stride", "input", "channels",
    "memory", "memory_max", "next_channels", "next_memory", "peak_layerwise", "peak_blockwise",
]  # fmt: skip
# M and G are decimal, Mi and Gi are 2^20 and 2^30.
UNITS = {"": 1, "%": 1, "ms": 1, "M": 10**6, "G": 10**9, "Mi": 2**20, "Gi": 2**30, "KB": 1000, "elements": 1, "ch": 1}
Rule = Literal["rounded", "rounded or truncated", "near"]
RULES: dict[Rule, str] = {
    "rounded": "✓ the printed value is the counted one, rounded to the printed digits",
    "rounded or truncated": "✓ the printed value is the counted one, rounded or truncated to the printed digits",
    "near": "✓ the printed value is within 2.5% of the counted one, or is it truncated",
}
FOREIGN_RULE = (
    "≈ a network of others, counted by its own rows here, which are as torchvision builds it, with 1000 classes, and "
    "need not be how the paper had it: by how much the printed value is more or less is said, not judged"
)


@dataclass(frozen=True)
class Net:
    """A network of ours as a cell counts it.

    Only a part: `layers`, names or beginnings of them; `kind`, one layer type; `side`, maps of so many pixels a side.
    `last_stride` is that of V1's last depthwise layer. `detector`: the one that stands on it, the background among its
    classes.
    """

    arch: str = "v1"
    alpha: float = 1.0
    resolution: int | None = None
    num_classes: int = 1000
    min_depth: int = 8
    last_stride: int = 1
    layers: tuple[str, ...] = ()
    kind: str | None = None
    side: int = 0
    detector: str = ""


@dataclass(frozen=True)
class Column:
    """`what` None: can't be computed, for the reason `why`. `exact`: worth a column of integers in a terminal."""

    name: str
    unit: str = ""
    what: What | None = None
    why: Literal["as published", "can't be derived"] = "as published"
    exact: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell that differs from its column: other unit, other network, other count."""

    printed: str
    unit: str = ""
    what: What | None = None
    net: Net | None = None


@dataclass(frozen=True)
class Row:
    """`cells` as printed, "" where nothing is; `foreign`: a network of others, by its name here."""

    label: str
    net: Net | None
    cells: tuple[str | Cell, ...]
    foreign: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    rule: Rule = "rounded"
    note: str = ""


TOP1 = Column("top-1", "%")
MACS = Column("mult-adds", "M", "macs")
WEIGHTS = Column("params", "M", "weights")
COSTS = (TOP1, MACS, WEIGHTS)
V1 = Net()
NONE = Cell("")
GOOGLENET = Row("GoogLeNet", None, ("69.8", "1550", "6.8"), "googlenet")
VGG16 = Row("VGG16", None, ("71.5", "15300", "138"), "vgg16")
SQUEEZENET = Row("SqueezeNet", None, ("57.5", "1700", "1.25"), "squeezenet-1.0")
ALEXNET = Row("AlexNet", None, ("57.2", "720", "60"), "alexnet")
INCEPTION_V3 = Row("Inception V3", None, ("84", "5000", "23.2"), "inception-v3")


# fmt: off
def _rows(text: str) -> tuple[Row, ...]:
    """Rows that can't be computed, a line each: label | cell | cell ..."""
    lines = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return tuple(Row(label, None, tuple(cells)) for label, *cells in lines)


def _v1(text: str, num_classes: int = 1000) -> tuple[Row, ...]:
    """Rows of V1, a line each: alpha-resolution cell cell ...; a second row of a name gets a prime."""
    rows: dict[str, Row] = {}
    for line in text.strip().splitlines():
        name, *cells = line.split()
        alpha, resolution = name.split("-")
        label = f"MobileNet {name}"
        label += "'" * (label in rows)
        rows[label] = Row(label, Net("v1", float(alpha), int(resolution), num_classes), tuple(cells))
    return tuple(rows.values())


def _v1_paper(n: int, title: str, columns: tuple[Column, ...], rows: tuple[Row, ...], note: str = "") -> Table:
    return Table(f"v1-table{n}", title, f"Howard et al., arXiv 1704.04861, table {n}", columns, rows, note=note)


_V1_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_V1_STRIDES = "1212121111122"  # the last as printed
_BLOCK = ("blocks.7.",)  # of 512 channels, 14x14
_GLOBE = Net(num_classes=10_000)  # cells
_DETECTION = Column("mAP", "%"), Column("mult-adds", "G", "macs"), Column("params", "M", "params")
V1_TABLES = (
    _v1_paper(1, "V1's body, block by block", (Column("stride", "", "stride"), MACS, WEIGHTS), (
        Row("0: conv 3x3, 32", Net(layers=("blocks.0.",)), ("2", "", "")),
        *(Row(f"{i}: dw 3x3 + pw 1x1, {c}", Net(layers=(f"blocks.{i}.",)), (s, "", ""))
          for i, (c, s) in enumerate(zip(_V1_CHANNELS, _V1_STRIDES, strict=True), 1)),
        Row("fully connected, 1000", Net(layers=("classifier",)), (NONE, "", "")),
        Row("in all", V1, (NONE, "", "")),
    )),
    _v1_paper(2, "V1's cost by layer type",
              (Column("mult-adds", "%", "macs_share"), Column("params", "%", "weights_share")), (
        Row("Conv 1x1", Net(kind="pointwise"), ("94.86", "74.59")),
        Row("Conv DW 3x3", Net(kind="depthwise"), ("3.06", "1.06")),
        Row("Conv 3x3", Net(kind="conv"), ("1.19", "0.02")),
        Row("Fully connected", Net(kind="linear"), ("0.18", "24.33")),
    )),
    _v1_paper(3, "One layer made smaller: 3x3, 512 to 512 channels, a map of 14x14", (MACS, WEIGHTS), (
        Row("standard convolution", Net("v1-full-conv", layers=_BLOCK), ("462", "2.36")),
        Row("depthwise separable", Net(layers=_BLOCK), ("52.3", "0.27")),
        Row("alpha 0.75", Net(alpha=0.75, layers=_BLOCK), ("29.6", "0.15")),
        Row("rho 0.714", Net(alpha=0.75, resolution=160, layers=_BLOCK), ("15.1", "0.15")),
    ), "The layer is block 7 of V1; rho 0.714 is V1 at 160 pixels."),
    _v1_paper(4, "Standard against depthwise separable convolutions", COSTS, (
        Row("Conv MobileNet", Net("v1-full-conv"), ("71.7", "4866", "29.3")),
        Row("MobileNet", V1, ("70.6", "569", "4.2")),
    )),
    _v1_paper(5, "Narrow against shallow", COSTS, (
        Row("0.75 MobileNet", Net(alpha=0.75), ("68.4", "325", "2.6")),
        Row("Shallow MobileNet", Net("v1-shallow"), ("65.3", "307", "2.9")),
    )),
    _v1_paper(6, "Width multiplier", COSTS, _v1("""
        1.0-224   70.6  569  4.2
        0.75-224  68.4  325  2.6
        0.5-224   63.7  149  1.3
        0.25-224  50.6   41  0.5""")),
    _v1_paper(7, "Resolution", COSTS, _v1("""
        1.0-224  70.6  569  4.2
        1.0-192  69.1  418  4.2
        1.0-160  67.2  290  4.2
        1.0-128  64.4  186  4.2""")),
    _v1_paper(8, "Against popular networks", COSTS, (*_v1("1.0-224 70.6 569 4.2"), GOOGLENET, VGG16)),
    _v1_paper(9, "A small one against popular networks", COSTS, (*_v1("0.5-160 60.2 76 1.32"), SQUEEZENET, ALEXNET)),
    _v1_paper(10, "Stanford Dogs", COSTS, (INCEPTION_V3, *_v1("""
        1.0-224   83.3  569  3.3
        0.75-224  81.9  325  1.9
        1.0-192   81.9  418  3.3
        0.75-192  80.5  239  1.9""", num_classes=120)),
        "Ours are counted with the 120 breeds as classes. All four printed mult-adds are of 1000 classes; for two of "
        "them it makes no difference to the printed digits."),
    _v1_paper(11, "Geolocalization: photos of Im2GPS placed within a distance",
              (Column("Im2GPS", "%"), Column("PlaNet", "%"), Column("PlaNet MobileNet", "%")), (
        *_rows("""
            2500 km | 51.9 | 77.6 | 79.3
            750 km  | 35.4 | 64.0 | 60.3
            200 km  | 32.1 | 51.1 | 45.2
            25 km   | 21.9 | 31.7 | 31.7
            1 km    |  2.5 | 11.0 | 11.4"""),
        Row("parameters, M", None, ("", Cell("52", "M"), Cell("13", "M", "weights", _GLOBE))),
        Row("mult-adds, M", None, ("", Cell("5740", "M"), Cell("0.58", "M", "macs", _GLOBE))),
    ), "The costs are printed in the text. Ours are counted with 10,000 cells of the globe as classes."),
    _v1_paper(12, "Face attributes", (Column("mean AP", "%"), MACS, WEIGHTS), (*_v1("""
        1.0-224   88.7  568  3.2
        0.5-224   88.1  149  0.8
        0.25-224  87.2   45  0.2
        1.0-128   88.1  185  3.2
        0.5-128   87.7   48  0.8
        0.25-128  86.4   15  0.2""", num_classes=0), *_rows("baseline | 86.9 | 1600 | 7.5")),
        "Ours are counted without a head."),
    _v1_paper(13, "COCO detection", _DETECTION, (*_rows("""
        SSD300, deeplab-VGG           | 21.1 |  34.9 |  33.1
        SSD300, Inception V2          | 22.0 |   3.8 |  13.7"""),
        Row("SSD300, MobileNet", Net("v1", 1.0, 300, 91, detector="ssd"), ("19.3", "1.2", "6.8")), *_rows("""
        Faster-RCNN 300, VGG          | 22.9 |  64.3 | 138.5
        Faster-RCNN 300, Inception V2 | 15.4 | 118.2 |  13.3"""),
        Row("Faster-RCNN 300, MobileNet", Net("v1", 1.0, 300, 91, detector="faster-rcnn"), ("16.4", "25.2", "6.1")),
        *_rows("""
        Faster-RCNN 600, VGG          | 25.7 | 149.6 | 138.5
        Faster-RCNN 600, Inception V2 | 21.9 | 129.6 |  13.3"""),
        Row("Faster-RCNN 600, MobileNet", Net("v1", 1.0, 600, 91, detector="faster-rcnn"), ("19.8", "30.5", "6.1"))),
        "Ours have 91 classes: COCO's ids, which go up to 90, and the background. BatchNorm's two parameters a channel "
        "and biases are in. Faster R-CNN looks at 300 proposals, each through the last two blocks at stride 1, that is "
        "93% of the mult-adds at 300 pixels; the authors' published code has stride 2 there, a third of that."),
    _v1_paper(14, "Face embedding, distilled from FaceNet",
              (Column("accuracy", "%"), MACS, Column("params", "M", why="can't be derived")), (
        *_rows("FaceNet | 83 | 1600 | 7.5"), *_v1("""
        1.0-160   79.4  286  4.9
        1.0-128   78.3  185  5.5
        0.75-128  75.2  166  3.4
        0.75-128  72.5  108  3.8""", num_classes=0)),
        "Accuracy at a false accept rate of 1e-4. Ours are counted without a head: the paper doesn't say which one "
        "they had."),
)



# fmt: off
def _v2_line(name: str, first: int, n: int, printed: str) -> Row:
    return Row(name, Net("v2", layers=tuple(f"blocks.{i}." for i in range(first, first + n))), (printed, "", ""))


def _v2_memory(side: int, *printed: str) -> Row:
    """Channels and KB of V1, V2 and ShuffleNet."""
    kinds: tuple[tuple[What, str], ...] = (("channels", "ch"), ("memory", "KB"))
    columns = [(net, what, unit) for net in (Net("v1", side=side), Net("v2", side=side), None) for what, unit in kinds]
    return Row(f"{side}x{side}", None, tuple(
        Cell(text, unit, what if net else None, net) for text, (net, what, unit) in zip(printed, columns, strict=True)
    ))


def _v2_whole(label: str, what: What, unit: str, v1: str = "", v2: str = "", shufflenet: str = "") -> Row:
    ours = Cell(v1, unit, what, Net("v1")), Cell(v2, unit, what, Net("v2"))
    return Row(label, None, ("", ours[0], "", ours[1], "", shufflenet))


_HEAD = ("detect.",)  # a detector's layers beside its network's
V2_TABLES = (
    Table("v2-table2", "V2's body, line by line", "Sandler et al., arXiv 1801.04381, table 2",
          (Column("input", "", "input"), MACS, WEIGHTS), (
        _v2_line("conv 3x3, c 32, s 2", 0, 1, "224x224x3"),
        _v2_line("t 1, c 16, n 1, s 1", 1, 1, "112x112x32"),
        _v2_line("t 6, c 24, n 2, s 2", 2, 2, "112x112x16"),
        _v2_line("t 6, c 32, n 3, s 2", 4, 3, "56x56x24"),
        _v2_line("t 6, c 64, n 4, s 2", 7, 4, "28x28x32"),
        _v2_line("t 6, c 96, n 3, s 1", 11, 3, "14x14x64"),
        _v2_line("t 6, c 160, n 3, s 2", 14, 3, "14x14x96"),
        _v2_line("t 6, c 320, n 1, s 1", 17, 1, "7x7x160"),
        _v2_line("conv 1x1, c 1280", 18, 1, "7x7x320"),
        Row("conv 1x1, k 1000", Net("v2", layers=("classifier",)), ("1x1x1280", "", "")),
        Row("in all", Net("v2"), (NONE, "", "")),
    ), note="Bottlenecks of c channels, t the expansion, n times, the first at stride s."),
    Table("v2-table3", "Largest map that must be kept at each resolution, 16 bits an activation",
          "Sandler et al., arXiv 1801.04381, table 3",
          tuple(Column(f"{net} {what}", unit)
                for net in ("V1", "V2", "Shuffle") for what, unit in (("width", "ch"), ("memory", "KB"))), (
        _v2_memory(112, "64", "1600", "16", "400", "32", "800"),
        _v2_memory(56, "128", "800", "32", "200", "48", "300"),
        _v2_memory(28, "256", "400", "64", "100", "400", "600"),
        _v2_memory(14, "512", "200", "160", "62", "800", "310"),
        _v2_memory(7, "1024", "199", "320", "32", "1600", "156"),
        _v2_memory(1, "1024", "2", "1280", "2", "1600", "3"),
        _v2_whole("max", "memory_max", "KB", "1600", "400", "600"),
        _v2_whole("block peak", "peak_blockwise", "elements"),
        _v2_whole("layer peak", "peak_layerwise", "elements"),
    ), "near",
        "The paper's convention: a bottleneck runs as one operation whose inner maps are never whole, and V2's first "
        "and last convolutions are treated alike. KB are 1000 bytes; Shuffle is ShuffleNet (2x, g=3). The peaks are "
        "ours, the elements that the largest operation reads and writes: with a block as one operation, V2 needs half "
        "of V1; layer by layer, it needs more."),
    Table("v2-table4", "ImageNet", "Sandler et al., arXiv 1801.04381, table 4", (*COSTS, Column("Pixel 1", "ms")), (
        Row("MobileNetV1", V1, ("70.6", "575", "4.2", "113")),
        *_rows("""
            ShuffleNet (1.5) | 71.5 | 292 | 3.4 |
            ShuffleNet (x2)  | 73.7 | 524 | 5.4 |
            NASNet-A         | 74.0 | 564 | 5.3 | 183"""),
        Row("MobileNetV2", Net("v2"), ("72.0", "300", "3.4", "75")),
        Row("MobileNetV2 (1.4)", Net("v2", 1.4), ("74.7", "585", "6.9", "143")),
    ), "rounded or truncated"),
    Table("v2-table5", "What SSD adds to V2, with standard and with separable layers",
          "Sandler et al., arXiv 1801.04381, table 5", (*_DETECTION[2:], *_DETECTION[1:2]), (
        Row("SSD", Net("v2", 1.0, 320, 81, layers=_HEAD, detector="ssd"), ("14.8", "1.25")),
        Row("SSDLite", Net("v2", 1.0, 320, 81, layers=_HEAD, detector="ssdlite"), ("2.1", "0.35")),
    ), "rounded or truncated",
        "Ours are the layers behind the network and the predictions, at 320 pixels with 81 classes: COCO's 80 kinds "
        "and the background. With 91 classes, SSD's parameters would be 16.2 M."),
    Table("v2-table6", "COCO detection", "Sandler et al., arXiv 1801.04381, table 6",
          (*_DETECTION, Column("Pixel 1", "ms")), (*_rows("""
        SSD300 | 23.2 | 35.2 | 36.1 |
        SSD512 | 26.8 | 99.5 | 36.1 |
        YOLOv2 | 21.6 | 17.5 | 50.7 |"""),
        Row("MNet V1 + SSDLite", Net("v1", 1.0, 320, 81, detector="ssdlite"), ("22.2", "1.3", "5.1", "270")),
        Row("MNet V2 + SSDLite", Net("v2", 1.0, 320, 81, detector="ssdlite"), ("22.1", "0.8", "4.3", "200")),
    ), note="Ours are at 320 pixels, with 81 classes. At 300 pixels and with 91 classes, as the authors' released "
        "network is, V2's are 0.75 G and 4.5 M."),
)
V3_COSTS = Table(
    "v3-costs", "V3's costs",
    "Howard et al., arXiv 1905.02244, table 3 of its first edition; TF-slim README, mobilenet_v3 checkpoints", COSTS, (
        Row("Large 1.0, paper", Net("v3-large"), ("75.2", "219", "5.4")),
        Row("Large 0.75, paper", Net("v3-large", 0.75), ("73.3", "155", "4.0")),
        Row("Small 1.0, paper", Net("v3-small"), ("67.4", "66", "2.9")),
        Row("Small 0.75, paper", Net("v3-small", 0.75), ("65.4", "44", "2.4")),
        Row("Large 1.0, TF-slim", Net("v3-large"), ("75.2", "217", "5.4")),
        Row("Large 0.75, TF-slim", Net("v3-large", 0.75), ("73.3", "155", "4.0")),
        Row("Small 1.0, TF-slim", Net("v3-small"), ("67.5", "66", "2.9")),
        Row("Small 0.75, TF-slim", Net("v3-small", 0.75), ("65.4", "44", "2.4")),
        Row("Large minimalistic, TF-slim", Net("v3-large-minimalistic"), ("72.3", "209", "3.9")),
        Row("Small minimalistic, TF-slim", Net("v3-small-minimalistic"), ("61.9", "65", "2.0")),
    ), "rounded or truncated",
    "Widths below 1 by TF-slim's convention: the expansion ratio applies to the rounded input, the head is kept.")
V4_COSTS = Table(
    "v4-costs", "V4's costs", "Qin et al., arXiv 2404.10518, its ImageNet table",
    (TOP1, Column("mult-adds", "Gi", "macs"), Column("by 10^9", "G", "macs", exact=False),
     Column("params", "Mi", "folded"), Column("trainable", "M", "params", exact=False)), (
        Row("Conv-S", Net("v4-conv-s"), ("73.8", "0.2", "", "3.8", "")),
        Row("Conv-M", Net("v4-conv-m"), ("79.9", "1.0", "", "9.2", "")),
        Row("Conv-L", Net("v4-conv-l"), ("82.9", "5.9", "", "31", "")),
        Row("Hybrid-M", Net("v4-hybrid-m"), ("80.7", "1.2", "", "10.5", "")),
        Row("Hybrid-L", Net("v4-hybrid-l"), ("83.4", "7.2", "", "35.9", "")),
    ), note='The "G" of the paper agrees in all five rows as 2^30 (Gi), as 10^9 in the first alone. Its "M" agrees as '
    "2^20 (Mi) in all but the first, where each BatchNorm counts as one number per channel, the bias that folding "
    "leaves; with none, or with both of its trained ones, not all four agree.")

# TF-slim README, MobileNet_v1 and _v2 checkpoints.
SLIM_V1_MACS_M: Mapping[float, Mapping[int, int]] = {
    1.0: {224: 569, 192: 418, 160: 291, 128: 186},
    0.75: {224: 317, 192: 233, 160: 162, 128: 104},
    0.5: {224: 150, 192: 110, 160: 77, 128: 49},
    0.25: {224: 41, 192: 34, 160: 21, 128: 14},
}
SLIM_V1_PARAMS_M = {1.0: "4.24", 0.75: "2.59", 0.5: "1.34", 0.25: "0.47"}
SLIM_V2_PARAMS_M = {1.4: "6.06", 1.3: "5.34", 1.0: "3.47", 0.75: "2.61", 0.5: "1.95", 0.35: "1.66"}
TRAINABLE = Column("trainable", "M", "params")
V1_MODELS = Table(
    "v1-models", "The 16 V1 models", "TF-slim README, MobileNet_v1 checkpoints",
    (Column("float", "%"), Column("8-bit", "%"), MACS, Column("params", "M", "slim", exact=False), TRAINABLE),
    tuple(Row(f"{a}-{r}", Net("v1", a, r),
              (f"{top1}", f"{published.V1_TOP1_INT8[a][r]}", f"{SLIM_V1_MACS_M[a][r]}", SLIM_V1_PARAMS_M[a], ""))
          for a, row in published.V1_TOP1.items() for r, top1 in row.items()),
    note="float and 8-bit are ImageNet top-1. The printed parameters have three of BatchNorm's four numbers in.")
V2_MODELS = Table(
    "v2-models", "The 22 V2 models", "TF-slim README, MobileNet_v2 checkpoints",
    (TOP1, MACS, Column("params", "M", "weights", exact=False), TRAINABLE),
    tuple(Row(f"{a}-{r}", Net("v2", a, r), (f"{top1}", f"{published.V2_MACS_M[a][r]}", SLIM_V2_PARAMS_M[a], ""))
          for a, row in published.V2_TOP1.items() for r, top1 in row.items()),
    "rounded or truncated", "The printed parameters have no BatchNorm and no biases in.")
TABLES = {t.name: t for t in (*V1_TABLES, *V2_TABLES, V3_COSTS, V4_COSTS, V1_MODELS, V2_MODELS)}
