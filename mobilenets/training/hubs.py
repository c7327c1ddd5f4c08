"""Networks of torchvision and timm, whole and with their weights, by their own code: teachers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, cast

from mobilenets.errors import UserError, unknown
from mobilenets.model.images import Preprocess

FILE = "model.safetensors"  # of timm's repositories


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


def fetch(source: str, where: str, download: Callable[[], Any], offline: str) -> Any:
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
