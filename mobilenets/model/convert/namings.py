"""How other libraries name the tensors of MobileNets, as data; `named_networks` has the others. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from mobilenets.model.convert.named_networks import LISTED
from mobilenets.model.convert.naming import KERAS, PYTORCH, SLIM, Naming

_TIMM = "blocks.{s}.{j}."
_TIMM_INVERTED = {
    "stem": "conv_stem|bn1",
    "expand": _TIMM + "conv_pw|" + _TIMM + "bn1",
    "depthwise": _TIMM + "conv_dw|" + _TIMM + "bn{n}",
    "se_reduce": _TIMM + "se.conv_reduce",
    "se_expand": _TIMM + "se.conv_expand",
    "project": _TIMM + "conv_pwl|" + _TIMM + "bn3",
    "project/plain": _TIMM + "conv_pw|" + _TIMM + "bn2",
    "classifier": "classifier",
}
_KERAS_V3 = "expanded_conv_{b}_"

_NAMINGS = (
    Naming(
        "torchvision",
        "v2",
        PYTORCH,
        {
            "stem": "features.{i}.0|features.{i}.1",
            "expand": "features.{i}.conv.{k}.0|features.{i}.conv.{k}.1",
            "depthwise": "features.{i}.conv.{k}.0|features.{i}.conv.{k}.1",
            "project": "features.{i}.conv.{k}|features.{i}.conv.{k1}",
            "last": "features.{i}.0|features.{i}.1",
            "classifier": "classifier.1",
        },
    ),
    Naming(
        "torchvision",
        "v3",
        PYTORCH,
        {
            "stem": "features.{i}.0|features.{i}.1",
            "expand": "features.{i}.block.{k}.0|features.{i}.block.{k}.1",
            "depthwise": "features.{i}.block.{k}.0|features.{i}.block.{k}.1",
            "se_reduce": "features.{i}.block.{k}.fc1",
            "se_expand": "features.{i}.block.{k}.fc2",
            "project": "features.{i}.block.{k}.0|features.{i}.block.{k}.1",
            "last": "features.{i}.0|features.{i}.1",
            "head": "classifier.0",
            "classifier": "classifier.3",
        },
        bn_eps=1e-3,
    ),
    Naming(
        "timm",
        "v1",
        PYTORCH,
        {
            "stem": "conv_stem|bn1",
            "depthwise": _TIMM + "conv_dw|" + _TIMM + "bn1",
            "pointwise": _TIMM + "conv_pw|" + _TIMM + "bn2",
            "classifier": "classifier",
        },
    ),
    Naming("timm", "v2", PYTORCH, {**_TIMM_INVERTED, "last": "conv_head|bn2"}),
    Naming("timm", "v3", PYTORCH, {**_TIMM_INVERTED, "last": _TIMM + "conv|" + _TIMM + "bn1", "head": "conv_head"}),
    Naming(
        "timm",
        "v4",
        PYTORCH,
        {
            "stem": "conv_stem|bn1",
            "conv": _TIMM + "conv|" + _TIMM + "bn1",
            "start": _TIMM + "dw_start.conv|" + _TIMM + "dw_start.bn",
            "expand": _TIMM + "pw_exp.conv|" + _TIMM + "pw_exp.bn",
            "depthwise": _TIMM + "dw_mid.conv|" + _TIMM + "dw_mid.bn",
            "project": _TIMM + "pw_proj.conv|" + _TIMM + "pw_proj.bn",
            "fused/expand": _TIMM + "conv_exp|" + _TIMM + "bn1",
            "fused/project": _TIMM + "conv_pwl|" + _TIMM + "bn2",
            "norm": "|" + _TIMM + "norm",
            "query": _TIMM + "attn.query.proj",
            "key_down": _TIMM + "attn.key.down_conv|" + _TIMM + "attn.key.norm",
            "key": _TIMM + "attn.key.proj",
            "value_down": _TIMM + "attn.value.down_conv|" + _TIMM + "attn.value.norm",
            "value": _TIMM + "attn.value.proj",
            "output": _TIMM + "attn.output.proj",
            "last": _TIMM + "conv|" + _TIMM + "bn1",
            "head": "conv_head|norm_head",
            "classifier": "classifier",
        },
        scales={"project": _TIMM + "layer_scale", "output": _TIMM + "layer_scale"},
    ),
    Naming(
        "Keras",
        "v1",
        KERAS,
        {
            "stem": "conv1|conv1_bn",
            "depthwise": "conv_dw_{i}|conv_dw_{i}_bn",
            "pointwise": "conv_pw_{i}|conv_pw_{i}_bn",
            "classifier": "conv_preds",
        },
    ),
    Naming(
        "Keras",
        "v2",
        KERAS,
        {
            "stem": "Conv1|bn_Conv1",
            "expand": "block_{b}_expand|block_{b}_expand_BN",
            "depthwise": "block_{b}_depthwise|block_{b}_depthwise_BN",
            "project": "block_{b}_project|block_{b}_project_BN",
            "depthwise/plain": "expanded_conv_depthwise|expanded_conv_depthwise_BN",
            "project/plain": "expanded_conv_project|expanded_conv_project_BN",
            "last": "Conv_1|Conv_1_bn",
            "classifier": "predictions",
        },
    ),
    Naming(
        "Keras",
        "v3",
        KERAS,
        {
            "stem": "conv|conv_bn",
            "expand": _KERAS_V3 + "expand|" + _KERAS_V3 + "expand_bn",
            "depthwise": _KERAS_V3 + "depthwise|" + _KERAS_V3 + "depthwise_bn",
            "se_reduce": _KERAS_V3 + "squeeze_excite_conv",
            "se_expand": _KERAS_V3 + "squeeze_excite_conv_1",
            "project": _KERAS_V3 + "project|" + _KERAS_V3 + "project_bn",
            "depthwise/plain": "expanded_conv_depthwise|expanded_conv_depthwise_bn",
            "se_reduce/plain": "expanded_conv_squeeze_excite_conv",
            "se_expand/plain": "expanded_conv_squeeze_excite_conv_1",
            "project/plain": "expanded_conv_project|expanded_conv_project_bn",
            "last": "conv_1|conv_1_bn",
            "head": "conv_2",
            "classifier": "logits",
        },
    ),
    Naming(
        "TF-slim",
        "v1",
        SLIM,
        {
            "stem": "MobilenetV1/Conv2d_0|MobilenetV1/Conv2d_0/BatchNorm",
            "depthwise": "MobilenetV1/Conv2d_{i}_depthwise|MobilenetV1/Conv2d_{i}_depthwise/BatchNorm",
            "pointwise": "MobilenetV1/Conv2d_{i}_pointwise|MobilenetV1/Conv2d_{i}_pointwise/BatchNorm",
            "classifier": "MobilenetV1/Logits/Conv2d_1c_1x1",
        },
    ),
    *(
        Naming(
            "TF-slim",
            family,
            SLIM,
            {
                "stem": f"{scope}/Conv|{scope}/Conv/BatchNorm",
                **{
                    op: f"{scope}/expanded_conv_{{b}}/{op}|{scope}/expanded_conv_{{b}}/{op}/BatchNorm"
                    for op in ("expand", "depthwise", "project")
                },
                **{
                    f"{op}/plain": f"{scope}/expanded_conv/{op}|{scope}/expanded_conv/{op}/BatchNorm"
                    for op in ("depthwise", "project")
                },
                "se_reduce": f"{scope}/expanded_conv_{{b}}/squeeze_excite/Conv",
                "se_expand": f"{scope}/expanded_conv_{{b}}/squeeze_excite/Conv_1",
                "se_reduce/plain": f"{scope}/expanded_conv/squeeze_excite/Conv",
                "se_expand/plain": f"{scope}/expanded_conv/squeeze_excite/Conv_1",
                "last": f"{scope}/Conv_1|{scope}/Conv_1/BatchNorm",
                "head": f"{scope}/Conv_2",
                "classifier": f"{scope}/Logits/Conv2d_1c_1x1",
            },
        )
        for family, scope in (("v2", "MobilenetV2"), ("v3", "MobilenetV3"))
    ),
)


def _renamed(family: str, rename: Callable[[str], str]) -> Naming:
    """Keras's own of a family, as an earlier Keras named it."""
    naming = next(n for n in _NAMINGS if (n.origin, n.family) == ("Keras", family))
    return dataclasses.replace(naming, layers={k: rename(v) for k, v in naming.layers.items()})


def _keras_2(v3: str) -> str:
    """Keras 2's names, which are those of the files that it downloads: expanded_conv_1/squeeze_excite/Conv."""
    parts = re.sub(r"(expanded_conv(_\{b\})?)_", r"\1/", v3).replace("_bn", "/BatchNorm")
    parts = parts.replace("squeeze_excite_conv", "squeeze_excite/Conv")
    return re.sub(r"(^|\|)(conv|logits)", lambda m: m[0].title(), parts)


NAMINGS = (
    *_NAMINGS,
    _renamed("v2", lambda name: name.replace("predictions", "Logits")),
    _renamed("v3", _keras_2),
    # timm's of one builder with its MobileNets
    *(
        Naming("timm", family, PYTORCH, {**_TIMM_INVERTED, "last": "conv_head|bn2"})
        for family in ("mnasnet", "efficientnet")
    ),
    Naming(
        "timm",
        "mobilenet",
        PYTORCH,
        {
            **_TIMM_INVERTED,
            "conv": _TIMM + "conv|" + _TIMM + "bn1",
            "fused/expand": _TIMM + "conv_exp|" + _TIMM + "bn1",
            "fused/project": _TIMM + "conv_pwl|" + _TIMM + "bn2",
            "last": "conv_head|bn2",
        },
    ),
    *LISTED,
)
