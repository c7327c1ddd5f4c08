"""Weights by name from torchvision and timm, fetched by their own code."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, cast

from mobilenets.arch import published
from mobilenets.errors import UserError, unknown
from mobilenets.model.card import Metric
from mobilenets.model.convert.foreign import Foreign, prepared
from mobilenets.model.convert.recognise import Arrays
from mobilenets.model.images import Preprocess

FILE = "model.safetensors"  # of timm's repositories
# timm's networks that are ours too. Others have the same tensors and compute something else (conv_aa, conv_blur: with
# anti-aliasing), so that tensors alone don't tell.
TIMM = re.compile(
    r"mobilenetv(1_\d+|2_\d+|3_(large|small)_\d+|4_(conv|hybrid)_(small|medium|large)(_\d+)?)"
    r"|tf_mobilenetv3_(large|small)_(minimal_)?\d+"
)


def torchvision(name: str) -> Foreign:
    """Weights of torchvision: "mobilenet_v2" for its best, or "mobilenet_v2.IMAGENET1K_V1"."""
    from torchvision import models

    builder, weights = torchvision_weights(name, [n for n in models.list_models() if n.startswith("mobilenet")])
    state = fetch(f"torchvision:{name}", weights.url, lambda: weights.get_state_dict(check_hash=True))
    return _of_torchvision(builder, weights, {k: v.numpy() for k, v in state.items()})


def _of_torchvision(builder: str, weights: Any, tensors: Arrays) -> Foreign:
    labels = tuple(weights.meta["categories"])
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return Foreign(
        f"torchvision:{builder}.{weights.name}",
        tensors,
        prepared(
            torchvision_preprocess(weights), labels=labels, licence="BSD-3-Clause",
            padding="symmetric", bn_eps=1e-5 if builder == "mobilenet_v2" else 1e-3,
        ),
        (Metric("top1", float(top1), "ImageNet, as published by torchvision", "val", 50_000),),
        {"url": weights.url},
    )  # fmt: skip


def of_torchvision(sha256: str, tensors: Arrays) -> Foreign | None:
    """What is known of a file that torchvision publishes: its address ends with the start of its digest."""
    from torchvision import models

    for builder in (n for n in models.list_models() if n.startswith("mobilenet")):
        for weights in models.get_model_weights(builder):
            if sha256.startswith(PurePath(weights.url).stem.rpartition("-")[2]):
                return _of_torchvision(builder, weights, tensors)
    return None


def timm(name: str) -> Foreign:
    """Weights of timm: "mobilenetv2_100" for its default, or "mobilenetv2_100.ra_in1k"."""
    library = timm_library()
    known = [n for n in library.list_pretrained("*mobilenetv*") if TIMM.fullmatch(n.partition(".")[0])]
    networks = dict.fromkeys(n.partition(".")[0] for n in known)
    if name not in known and name not in networks:
        raise unknown("timm network", name, known if "." in name else networks)
    config: Any = library.get_pretrained_cfg(name)
    where = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{FILE}"

    net = fetch(f"timm:{name}", where, lambda: timm_network(name))
    full = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    top1 = published.TIMM_TOP1.get(full)
    return Foreign(
        f"timm:{full}",
        {k: v.detach().numpy() for k, v in net.state_dict().items()},
        prepared(
            timm_preprocess(config), licence=config.license, bn_eps=net.bn1.eps,
            padding="same" if config.architecture.startswith("tf_") else "symmetric",
        ),
        (Metric("top1", top1, "ImageNet, as published by timm", "val", 50_000),) if top1 else (),
        {"url": where},
    )  # fmt: skip


HUBS: dict[str, Callable[[str], Foreign]] = {"torchvision": torchvision, "timm": timm}


def torchvision_weights(name: str, known: list[str]) -> tuple[str, Any]:
    """(builder, its weights) of a name among `known`: its best, or those that the name gives after a dot."""
    from torchvision import models

    builder, _, which = name.partition(".")
    if builder not in known:
        raise unknown("torchvision network", builder, known)
    enum = models.get_model_weights(builder)
    choices = [w.name for w in enum]
    if which and which not in choices:
        raise unknown(f"weights of {builder}", which, choices)
    return builder, enum[which] if which else enum.DEFAULT


def torchvision_preprocess(weights: Any) -> Preprocess:
    t = weights.transforms()
    return _preprocess(t.crop_size[0], t.crop_size[0] / t.resize_size[0], t.mean, t.std, t.interpolation.value)


def timm_library() -> Any:
    try:
        import timm as library
    except ImportError as e:
        raise UserError("timm isn't installed; it is needed for its weights: pip install timm") from e
    return library


def timm_network(name: str) -> Any:
    """A network of timm with its weights; fails at once where the Hub can't be reached."""
    library = timm_library()
    _reach(library.get_pretrained_cfg(name).hf_hub_id)
    return library.create_model(name, pretrained=True)


def timm_preprocess(config: Any) -> Preprocess:
    return _preprocess(config.input_size[1], config.crop_pct, config.mean, config.std, config.interpolation)


def _preprocess(resolution: int, crop: float, mean: Any, std: Any, interpolation: str) -> Preprocess:
    """From means and deviations in units of 0..1."""
    if interpolation not in ("bilinear", "bicubic"):
        interpolation = "bicubic"
    m, s = (cast("tuple[float, float, float]", tuple(round(255 * v, 6) for v in x)) for x in (mean, std))
    return Preprocess(resolution, min(crop, 1.0), m, s, cast(Any, interpolation))


def _reach(repository: str) -> None:
    """Raise at once where the Hub can't be reached; its own client takes most of a minute to give up."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if not isinstance(try_to_load_from_cache(repository, FILE), str):
        with contextlib.suppress(EntryNotFoundError):  # other files may be there
            get_hf_file_metadata(hf_hub_url(repository, FILE), timeout=10)


def fetch(source: str, where: str, download: Callable[[], Any], offline: str = "import the file") -> Any:
    """What `download` gives; a UserError that says what to do without a network: fetch `where` and `offline`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch says what it downloads; stdout is for results
            return download()
    except Exception as e:  # each library's client raises its own types, from URLError to a bare RuntimeError
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(
            f"{source} can't be downloaded ({reason}); if this machine is offline, "
            f"fetch {where} elsewhere and {offline}"
        ) from e
