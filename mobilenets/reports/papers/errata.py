"""What is wrong with printed values, and what they are instead where a count of ours says it."""

from __future__ import annotations

from dataclasses import dataclass

from mobilenets.reports.papers.tables import Net, What


@dataclass(frozen=True)
class Erratum:
    """A printed value that isn't the network's. `net`, `what`, `unit`: what it is instead, where they are given."""

    table: str
    row: str
    column: str
    cause: str
    net: Net | None = None
    what: What | None = None
    unit: str | None = None


# fmt: off
_NO_FC = "counted without the fully connected layer"
_NO_FC_OR_CUT = f"truncated, or {_NO_FC}"
_1000 = "counted with 1000 classes, not with the 120 that the parameters beside it are of"
_MIN_DEPTH = "counted with at least 16 channels in every layer"
_SHIFTED = "the channels of the next stage, at the size of the map that it reads"
_NEXT: tuple[tuple[str, What], ...] = (("width", "next_channels"), ("memory", "next_memory"))
_UNKNOWN = "no count of ours gives it"
_EARLIER = "not of the network as the paper's table 2 lists it and as it was released; later editions print "
_SHORT = "short by the same share at every resolution; the paper's own 325 for 0.75-224 is right"
ERRATA = (
    Erratum("v1-table1", "13: dw 3x3 + pw 1x1, 1024", "stride",
            "the map stays 7x7, so this layer runs at stride 1; at the printed one, V1 in all would have",
            Net(last_stride=2), "macs", "M"),
    Erratum("v1-table2", "Conv 3x3", "mult-adds", "two digits swapped; as printed, the column sums to 99.29%"),
    Erratum("v1-table4", "Conv MobileNet", "mult-adds", _NO_FC, Net("v1-full-conv", num_classes=0)),
    Erratum("v1-table7", "MobileNet 1.0-160", "mult-adds", _NO_FC_OR_CUT, Net("v1", 1.0, 160, 0)),
    Erratum("v1-table9", "MobileNet 0.5-160", "mult-adds", _NO_FC_OR_CUT, Net("v1", 0.5, 160, 0)),
    Erratum("v1-table9", "SqueezeNet", "mult-adds",
            "operations, two for a mult-add: its authors' README gives 1.72 G, and half of that is its mult-adds"),
    Erratum("v1-table10", "MobileNet 1.0-224", "mult-adds", _1000, Net("v1", 1.0, 224)),
    Erratum("v1-table10", "MobileNet 1.0-192", "mult-adds", _1000, Net("v1", 1.0, 192)),
    Erratum("v1-table11", "mult-adds, M", "PlaNet MobileNet", 'the text says "million" where it is billion', unit="G"),
    Erratum("v1-table12", "MobileNet 0.25-224", "mult-adds", _MIN_DEPTH, Net("v1", 0.25, 224, 0, 16)),
    Erratum("v1-table12", "MobileNet 0.5-128", "mult-adds", "the decimals dropped", Net("v1", 0.5, 128, 0)),
    Erratum("v1-table12", "MobileNet 0.25-128", "mult-adds", _MIN_DEPTH, Net("v1", 0.25, 128, 0, 16)),
    Erratum("v1-table14", "MobileNet 1.0-160", "mult-adds", _UNKNOWN),
    Erratum("v1-table14", "MobileNet 0.75-128", "mult-adds",
            "almost certainly 0.75-160: the row below has the same name", Net("v1", 0.75, 160, 0)),
    Erratum("v1-table14", "MobileNet 0.75-128'", "mult-adds", _UNKNOWN),
    *(Erratum("v2-table3", f"{side}x{side}", f"V2 {name}", _SHIFTED, Net("v2", side=side), what)
      for side in (56, 28, 14) for name, what in _NEXT),
    Erratum("v2-table3", "7x7", "V1 memory", "about twice what its 1024 channels take"),
    Erratum("v2-table4", "MobileNetV1", "mult-adds", f"V1's own paper prints 569; {_UNKNOWN}"),
    Erratum("v2-table4", "MobileNetV2 (1.4)", "mult-adds", f"the authors' README prints 582; {_UNKNOWN}"),
    Erratum("v2-table4", "MobileNetV2 (1.4)", "params", f"the authors' README prints 6.06; {_UNKNOWN}"),
    Erratum("v2-table5", "SSDLite", "mult-adds",
            "twice of it, truncated: operations, it seems, where the row above and table 6 count mult-adds"),
    Erratum("v3-costs", "Large 1.0, paper", "mult-adds", f"the authors' README prints 217; {_UNKNOWN}"),
    *(Erratum("v3-costs", f"Small {row}, {where}", column, cause) for where in ("paper", "TF-slim")
      for row, column, cause in (("1.0", "mult-adds", f"{_EARLIER}56"), ("1.0", "params", f"{_EARLIER}2.5"),
                                 ("0.75", "mult-adds", _UNKNOWN), ("0.75", "params", f"{_EARLIER}2.0"))),
    Erratum("v3-costs", "Small minimalistic, TF-slim", "mult-adds", f"beside the right parameters; {_UNKNOWN}"),
    Erratum("v4-costs", "Conv-S", "params", "in millions of 10^6, alone in its column", unit="M"),
    *(Erratum("v1-models", f"0.75-{r}", "mult-adds", _SHORT) for r in (224, 192, 160, 128)),
    Erratum("v1-models", "0.5-224", "mult-adds", "rounded twice, first to one decimal"),
    Erratum("v1-models", "0.25-192", "mult-adds", _UNKNOWN),
)
# What a paper's text and its table say differently, and no count decides: where, text, table, which to believe.
TEXT_ERRATA = (
    ("V1, face attributes: the baseline's parameters", "75 M", "7.5 M",
     "in the text and in table 12; table 14 prints 7.5 too, for FaceNet, beside the same mult-adds"),
)
