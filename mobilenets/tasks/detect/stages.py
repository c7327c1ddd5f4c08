"""What a two-stage detector's training minimises: torchvision's losses, of the network's own layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from mobilenets.arch.detectors.two_stage import FOUND, MASK
from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import SAMPLES, Op
from mobilenets.model.module import ConvNormAct, Walker
from mobilenets.model.two_stage import pixels
from mobilenets.tasks.detect.start import BOX_LAYERS

PROPOSED = 256  # anchors of an image that say something of proposals (Faster R-CNN, section 3.1.3)
LOOKED_AT = 64  # proposals of an image that are learned from, a quarter of them objects; torchvision's 512 are for 800
# pixels and dozens of objects
TRAINED_ON = 500  # proposals that these are drawn from


class Calls(nn.Module):
    """A function as a module, without the parameters of what it calls: they are the network's."""

    def __init__(self, of: Callable[..., Any]) -> None:
        super().__init__()
        self.of = of

    def forward(self, *values: Any) -> Any:
        return self.of(*values)


def between(graph: Graph, source: str, taps: Sequence[str]) -> list[Op]:
    """The operations that make `taps` of `source` alone."""
    needed = {op.name for op in graph.upto(taps).ops}
    return [op for op in graph.after([source]) if op.name in needed and op.name != source]


class TwoStageLoss(nn.Module):
    """The proposals' two losses, and of a sample of proposals those of classes, boxes and masks: their sum.

    `parts` has them by torchvision's names. Objects within crowds aren't learned. It is of the network that it follows:
    what it learns from are `taps`, and the layers behind a crop it runs itself, on the proposals that it draws.
    """

    taps: tuple[str, ...] = ()
    sees = (FOUND,)

    def follow(self, network: Walker) -> None:
        """Be of this network, whose anchors and layers it reads and doesn't own."""
        graph = network.graph
        proposing, found = graph.op("proposals"), graph.op(FOUND)
        how, last = proposing.suppression, found.suppression
        assert how is not None
        assert last is not None
        self.maps = graph.op("box.crop").inputs[1:]
        decoding, self.logits = proposing.inputs[::2], proposing.inputs[1::2]
        self.offsets = [graph.op(name).inputs[0] for name in decoding]
        self.taps = (*self.maps, *self.offsets, *self.logits)
        self.size: tuple[int, int] = graph.source_shape[1], graph.source_shape[2]
        self.anchors = [cast(Tensor, network.of(graph.op(name)).anchors) for name in decoding]
        none: Any = None  # anchors and layers are the network's
        looked_at, kept = ({"training": n, "testing": n} for n in (how.per_class, TRAINED_ON))
        self.rpn = RegionProposalNetwork(none, none, 0.7, 0.3, PROPOSED, 0.5, looked_at, kept, how.iou, how.score)
        names = [str(i) for i in range(len(self.maps))]

        def behind(crop: str, *taps: str) -> list[nn.Module]:
            """What makes `taps` of a crop, as torchvision has it: the crop, layers, what predicts."""
            ops = between(graph, crop, taps)

            def run(x: Tensor) -> Any:
                made = network.run({crop: x}, taps, ops)
                each = tuple(made[name].float() for name in taps)
                return each if len(each) > 1 else each[0]

            return [MultiScaleRoIAlign(names, graph.op(crop).kernel, SAMPLES), Calls(run), nn.Identity()]

        masks = behind("mask.crop", "mask.logits") if MASK in graph.by_name else []
        self.heads = RoIHeads(
            *behind("box.crop", "box.classes", "box.boxes"),
            0.5, 0.5, LOOKED_AT, 0.25, None, last.score, last.iou, last.most, *masks,
        )  # fmt: skip

    def targets(self, batch: Sequence[Any]) -> list[dict[str, Tensor]]:
        """Of images and their boxes in pixels (`tv_tensors`): what torchvision's detectors take, without crowds."""
        return [*map(learned, batch[1])]

    def mixes(self) -> Sequence[nn.Module]:
        return ()

    def forward(self, outputs: Mapping[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        return torch.stack([*self.parts(outputs, targets).values()]).sum()

    def held_out(self, outputs: Mapping[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """The proposals' losses."""
        return torch.stack([*self.proposals(outputs, targets)[1].values()]).sum()

    def proposals(self, outputs: Mapping[str, Tensor], targets: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image [K, 4] in pixels, and the losses of what makes them."""
        count = len(outputs[self.logits[0]])
        unit = pixels(self.size, outputs[self.logits[0]].float())
        every = torch.cat([a.to(unit) for a in self.anchors]) * unit
        corners = torch.cat((every[:, :2] - every[:, 2:] / 2, every[:, :2] + every[:, 2:] / 2), 1)
        anchors = [corners] * count
        sizes = [len(a) for a in self.anchors]
        logits = torch.cat([outputs[n].float() for n in self.logits], 1)
        offsets = torch.cat([outputs[n].float() for n in self.offsets], 1)
        rpn = self.rpn
        decoded = rpn.box_coder.decode(offsets.detach().flatten(0, 1), anchors).view(count, -1, 4)
        found, _ = rpn.filter_proposals(decoded, logits, [self.size] * count, sizes)
        labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
        wanted = rpn.box_coder.encode(matched, anchors)
        objects, boxes = rpn.compute_loss(logits.flatten(0, 1), offsets.flatten(0, 1), labels, wanted)
        return found, {"loss_objectness": objects, "loss_rpn_box_reg": boxes}

    def parts(self, outputs: Mapping[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses by torchvision's names."""
        found, losses = self.proposals(outputs, targets)
        levels = {str(i): outputs[name].float() for i, name in enumerate(self.maps)}
        _, more = self.heads(levels, found, [self.size] * len(found), list(targets))
        return {**more, **losses}


def learned(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Boxes, labels from 1 on, and masks, of all but crowds."""
    own = ~target["crowd"]
    made = {"boxes": target["boxes"].as_subclass(Tensor).float()[own], "labels": target["labels"][own] + 1}
    if "masks" in target:
        made["masks"] = target["masks"].as_subclass(Tensor)[own]
    return made


def initialise(network: Walker, anchors: Mapping[str, Any]) -> None:
    """Give a two-stage detector's own layers the weights that torchvision begins with, and its anchors."""
    for name, each in anchors.items():
        network.of(network.graph.op(name)).anchors = torch.tensor(each)
    for op in network.graph.layers:
        module = network.of(op)
        if isinstance(module, nn.Linear) and op.name in BOX_LAYERS:
            module.reset_parameters()
        elif isinstance(module, ConvNormAct) and op.name.startswith(("fpn.", "rpn.", "mask.logits")):
            if op.name.startswith("fpn."):
                nn.init.kaiming_uniform_(module.conv.weight, a=1)
            else:
                nn.init.normal_(module.conv.weight, std=0.01)
            if module.conv.bias is not None:
                nn.init.zeros_(module.conv.bias)
