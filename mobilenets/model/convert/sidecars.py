"""What is known of weights beside them: the config.json of timm and the Hub, the layers of a Keras model. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mobilenets.errors import UserError
from mobilenets.model.convert.foreign import Channels, Stated
from mobilenets.model.convert.formats import check, one_line, path_errors
from mobilenets.model.convert.recognise import Arrays
from mobilenets.model.images import Framing

CONFIG = "config.json"
_MAX_BYTES = 16 << 20  # tens of thousands of labels are 2 MB
_FRAMINGS: dict[str, Framing] = {"center": "crop", "squash": "stretch"}
_AVERAGE = (None, "", "avg", "fast", "fastavg")  # timm's names for the pooling that these networks have
_SIZES = {"small": "s", "medium": "m", "large": "l"}
_TIMM = re.compile(
    r"(?P<tf>tf_)?mobilenetv(?P<version>\d)(_(?P<kind>conv|hybrid))?(_(?P<size>small|medium|large))?"
    r"(?P<minimal>_minimal)?(_(?P<percent>\d{3}))?"
)
# Arguments of timm's builders that its weights show, that these networks have too, or that matter in training alone.
_SETTINGS = {
    "bn_eps", "bn_momentum", "channel_multiplier", "drop_path_rate", "drop_rate", "fix_stem", "global_pool", "img_size",
    "in_chans", "num_classes", "pad_type",
}  # fmt: skip
T = TypeVar("T")


def timm_arch(name: str) -> tuple[str, float, bool] | None:
    """(our name, alpha, whether TensorFlow trained it) of a network of timm; None for one that isn't ours."""
    m = _TIMM.fullmatch(name.partition(".")[0])
    version = m["version"] if m else ""
    if m is None or version not in "1234":
        return None
    kind = m["kind"] and f"{m['kind']}-{_SIZES[m['size']]}" if version == "4" and m["size"] else m["size"]
    if bool(kind) != (version in "34") or bool(m["kind"]) != (version == "4"):
        return None
    ours = "-".join(filter(None, [f"v{version}", kind, "minimalistic" if m["minimal"] else None]))
    return ours, int(m["percent"] or 100) / 100, bool(m["tf"])


def beside(path: Path) -> Stated | None:
    """What the config.json beside weights says of them; None where there is none, or one that isn't of networks.

    Raises `UserError` for one that can't be read, and for values that no network has.
    """
    config = path.with_name(CONFIG)
    if not config.is_file():
        return None
    if check(config) > _MAX_BYTES:
        raise UserError(f"{config}: far too long to be a network's; move it away to import the weights alone")
    try:
        with path_errors(config):
            found = json.loads(config.read_bytes())
        if not isinstance(found, dict) or not {"architecture", "pretrained_cfg"} & found.keys():
            return None
        return _of_timm(found)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{config}: {one_line(e)}; mend it, or move it away to import the weights alone") from e


def _of_timm(config: Mapping[str, Any]) -> Stated:
    """The config of timm, of the form with everything on one level too. Raises ValueError for what is wrong with it."""
    inner = (_get(config, "pretrained_cfg", dict) or {}) if "pretrained_cfg" in config else config
    merged = {**inner, **{k: v for k, v in config.items() if v is not None}}
    name = _get(merged, "architecture", str)
    ours = timm_arch(name) if name else None
    if name and ours is None:
        raise ValueError(f"it is of {name}, which isn't one of these networks")
    arguments: dict[str, Any] = _get(merged, "model_args", dict) or {}
    strange = sorted(set(arguments) - _SETTINGS)
    if strange:
        raise ValueError(f"its network was built with another {strange[0]}, which this can't take over")
    size = _get(merged, "input_size", list)
    if size is not None and (len(size) != 3 or size[0] != 3 or size[1] != size[2]):
        raise ValueError(f"input_size is {size}, not 3, height and the same width")
    mode = _get(merged, "crop_mode", str)
    if mode and mode not in _FRAMINGS:
        raise ValueError(f"its images are framed by {mode}, which this can't")
    tf = ours[2] if ours else False
    interpolation, pooling = _get(merged, "interpolation", str), _get(merged, "global_pool", str)
    return Stated(
        called=name,
        arch=ours[0] if ours else None,
        alpha=ours[1] if ours else None,
        pooling=None if pooling in _AVERAGE else pooling,
        num_classes=_whole(config.get("num_classes"), "num_classes"),  # the inner one's may be those trained before
        padding=None if ours is None else "same" if tf or arguments.get("pad_type") == "same" else "symmetric",
        bn_eps=_number(arguments.get("bn_eps"), "bn_eps") or (None if ours is None else 1e-3 if tf else 1e-5),
        labels=_labels(merged),
        licence=_get(merged, "license", str),
        resolution=_whole(size[1], "input_size") if size else None,
        mean=_pixels(merged.get("mean"), "mean"),
        std=_pixels(merged.get("std"), "std"),
        crop=_crop(_number(merged.get("crop_pct"), "crop_pct")),
        interpolation=None if interpolation is None else "bilinear" if interpolation == "bilinear" else "bicubic",
        framing=_FRAMINGS[mode] if mode else None,
    )


def of_keras(text: str, tensors: Arrays, where: Path) -> Stated:
    """What the description of a Keras model says: how it scales its images, at which size, and how it pools.

    Raises `UserError` where it is damaged.
    """
    scale, offset = np.ones(3), np.zeros(3)
    scaled, side, pooling = False, None, ""
    try:
        for kind, layer in _layers(json.loads(text)):
            if kind == "InputLayer" and side is None:
                side = _side(layer.get("batch_shape") or layer.get("batch_input_shape"))
            elif kind == "Resizing":
                side = _whole(layer.get("height"), "height")
            elif kind == "Rescaling":
                by = np.array(_three(layer.get("scale", 1), "scale"))
                scale, offset = scale * by, offset * by + _three(layer.get("offset", 0), "offset")
                scaled = True
            elif kind == "Normalization":
                mean, variance = (_three(_of_layer(layer, n, tensors), n) for n in ("mean", "variance"))
                by = 1 / np.sqrt(np.maximum(variance, 1e-14))
                scale, offset = scale * by, (offset - mean) * by
                scaled = True
            elif "MaxPool" in kind and kind.startswith("Global"):
                pooling = "the maximum"
        if not (scale > 0).all():
            raise ValueError("it scales images by zero or less")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as e:
        raise UserError(f"{where}: the description of its layers can't be read ({one_line(e)})") from e
    if not scaled:
        return Stated(resolution=side, pooling=pooling or None)
    mean, std = (_three([round(float(v), 6) for v in x], "scale") for x in (-offset / scale, 1 / scale))
    return Stated(resolution=side, pooling=pooling or None, mean=mean, std=std)


def _layers(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(class, configuration) of every layer in order, those of a model in the model in its place."""
    config = model["config"]
    if "layers" not in config:
        yield str(model["class_name"]), config
    for layer in config.get("layers", ()):
        yield from _layers(layer)


def _side(shape: Any) -> int | None:
    """The side of images of [N, H, W, 3], where it is stated and one."""
    square = isinstance(shape, list) and len(shape) == 4 and shape[1] == shape[2]
    return _whole(shape[1], "input shape") if square else None


def _of_layer(layer: dict[str, Any], name: str, tensors: Arrays) -> Any:
    """A number that a layer has been given, or has measured: it is among the weights then."""
    given = layer.get(name)
    return tensors[f"{layer['name']}/{name}"].ravel().tolist() if given is None else np.ravel(given).tolist()


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes' names: timm's, described where there are descriptions, or those of the Hub's id2label."""
    names = config.get("label_names", config.get("labels"))
    if names is None and isinstance(ids := config.get("id2label"), dict):
        names = [ids.get(str(i)) for i in range(len(ids))]
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("its label names aren't a list of names")
    return tuple(names)


def _get(config: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {one_line(json.dumps(value))}, not a {_KINDS[kind]}")
    return value


_KINDS: dict[type, str] = {str: "text", dict: "group of fields", list: "list"}


def _number(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(f"{key} is {one_line(json.dumps(value))}, not a number of a network")
    return float(value)


def _whole(value: Any, key: str) -> int | None:
    number = _number(value, key)
    if number is not None and not number.is_integer():
        raise ValueError(f"{key} is {number}, not a whole number")
    return None if number is None else int(number)


def _crop(share: float | None) -> float | None:
    """The Hub has some over 1, for images that are enlarged less than the input: those are seen whole."""
    return None if share is None else min(share, 1.0)


def _three(values: Any, key: str) -> Channels:
    """One number for all channels, or one for each."""
    many = values if isinstance(values, list) else [values]
    numbers = [n for v in many if (n := _number(v, key)) is not None]
    if len(numbers) != len(many) or len(numbers) not in (1, 3):
        raise ValueError(f"{key} is {one_line(json.dumps(values))}, not a number for each of 3 channels")
    first, second, third = (numbers * 3)[:3]
    return first, second, third


def _pixels(values: Any, key: str) -> Channels | None:
    """Numbers of 0..1 as such of 0..255."""
    if values is None:
        return None
    first, second, third = (round(255 * v, 6) for v in _three(values, key))
    return first, second, third
