"""The cost of networks that aren't ours: torchvision's and timm's, counted as they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilenets.console import Notebook
from mobilenets.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

LIBRARIES = ("torchvision", "timm")
# Classifiers that need more than the usual 224 pixels; timm's say it themselves.
RESOLUTIONS = {"inception_v3": 299}


@dataclass(frozen=True)
class ForeignCost(Notebook):
    """Macs and trainable parameters of somebody else's classifier, at `resolution` pixels."""

    name: str
    resolution: int
    macs: int
    params: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def __rich__(self) -> RenderableType:
        from mobilenets.console import table

        t = table(f"{self.name}, {self.resolution}x{self.resolution}", ["", "value", "exactly"], left=("",))
        t.add_row("macs (M)", f"{self.macs / 1e6:.2f}", f"{self.macs:,}")
        t.add_row("trainable params (M)", f"{self.params / 1e6:.2f}", f"{self.params:,}")
        t.caption = "counted by torch.utils.flop_counter; biases in, auxiliary heads out"
        return t


def is_foreign(name: str) -> bool:
    return name.partition(":")[0] in LIBRARIES and ":" in name


def count_foreign(name: str, resolution: int | None = None) -> ForeignCost:
    """Count "torchvision:vgg16" or "timm:efficientnet_b0" by running it on the "meta" device, without weights.

    Raises `UserError` for a network that the library doesn't have, or that isn't a classifier of images.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    library, _, builder = name.partition(":")
    with torch.device("meta"):
        net, native = (_torchvision if library == "torchvision" else _timm)(builder)
        side = resolution or native
        net.eval()
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(net, head):
                setattr(net, head, None)
        try:
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                net(torch.zeros(1, 3, side, side))
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as e:
            raise UserError(f"{name} can't be counted at {side}x{side} ({str(e).splitlines()[0]})") from e
    params = sum(p.numel() for p in net.parameters())
    return ForeignCost(name, side, int(counter.get_total_flops()) // 2, params)


def _torchvision(builder: str) -> tuple[Any, int]:
    from torchvision import models

    known = models.list_models(models)
    if builder not in known:
        raise unknown("torchvision classifier", builder, known)
    more = {"init_weights": False} if builder in ("googlenet", "inception_v3") else {}  # it is slow, and unused
    return models.get_model(builder, weights=None, **more), RESOLUTIONS.get(builder, 224)


def _timm(builder: str) -> tuple[Any, int]:
    try:
        import timm
    except ImportError as e:
        raise UserError("timm isn't installed: pip install timm") from e
    known = timm.list_models()
    if builder not in known:
        raise unknown("timm network", builder, known)
    net: Any = timm.create_model(builder)
    return net, net.pretrained_cfg["input_size"][1]
