"""Networks as others name and lay out their weights, and what such a file's network answers."""

import numpy as np
import torch
from torch import nn

from mobilenets.model import reference as simulate


def state(net):
    return {k: v.numpy().copy() for k, v in net.state_dict().items()}


def worst(a, b):
    return float((a - b).abs().max().detach() / a.abs().max().detach())


def randomised(net, side=64, seed=0):
    """`net` with every tensor random, its BatchNorm near the statistics of what it is shown: values of order one."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for name, p in net.named_parameters():
            if name.endswith("gamma"):  # timm's layer scale
                p.copy_(2.0 ** torch.randint(-2, 1, p.shape))  # powers of two, so that folding them rounds nothing
            elif p.ndim > 1:
                p.normal_(0, (1.5 / p[0].numel()) ** 0.5)
            else:
                p.normal_(0, 0.3)
        for m in norms:
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0.5, 0.5)
            m.momentum = 1.0
        net.train()(torch.randn(8, 3, side, side))
        for m in norms:
            m.running_mean += torch.randn_like(m.running_mean) * 0.05
            m.running_var.clamp_(min=0.05).mul_(torch.rand_like(m.running_var) * 0.4 + 0.8)
    return net.eval()


def hwio(array, depthwise=False):
    return array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)


def named_arrays(bundle, layer, kernel, bias, leaves):
    """The bundle's tensors by the names of another framework; `layer(i, kind)` gives a layer's and its BatchNorm's."""
    out = {}
    t = bundle.tensors
    for op in bundle.card.arch.layers:
        part, _, rest = op.name.partition(".")
        i, _, kind = rest.partition(".")
        conv, norm = layer(part, int(i or 0), kind, len(bundle.card.arch.rows) - 1)
        if op.kind == "linear":
            wide = bundle.card.arch.name != "v2" or "Mobilenet" in conv
            weight = t["classifier.weight"].T
            out[f"{conv}/{kernel}"] = weight[None, None] if wide else weight
            out[f"{conv}/{bias}"] = t["classifier.bias"]
            continue
        depthwise = op.kind == "depthwise"
        out[f"{conv}/{'depthwise_' * depthwise}{kernel}"] = hwio(t[f"{op.name}.conv.weight"], depthwise)
        if op.bias:
            out[f"{conv}/{bias}"] = t[f"{op.name}.conv.bias"]
        if op.norm:
            roles = ("weight", "bias", "running_mean", "running_var")
            out |= {f"{norm}/{leaf}": t[f"{op.name}.norm.{r}"] for leaf, r in zip(leaves, roles, strict=True)}
    return {k: np.ascontiguousarray(v, np.float32) for k, v in out.items()}


def keras_v1(part, i, kind, _last):
    name = "conv_preds" if part == "classifier" else f"conv_{kind[0]}{'w'}_{i}" if i else "conv1"
    return name, f"{name}_bn"


def slim_names(scope):
    def layer(part, i, kind, last):
        if part == "classifier":
            name = "Logits/Conv2d_1c_1x1"
        elif scope == "MobilenetV1":
            name = f"Conv2d_{i}_{kind}" if i else "Conv2d_0"
        elif part == "head" or i in (0, last):
            name = "Conv_2" if part == "head" else "Conv_1" if i else "Conv"
        else:
            inner = {"se_reduce": "squeeze_excite/Conv", "se_expand": "squeeze_excite/Conv_1"}.get(kind, kind)
            name = f"expanded_conv{f'_{i - 1}' if i > 1 else ''}/{inner}"
        return f"{scope}/{name}", f"{scope}/{name}/BatchNorm"

    return layer


def keras_v3(part, i, kind, last):
    names = {"classifier": "logits", "head": "conv_2"}
    edges = {0: "conv", last: "conv_1"}
    name = names.get(part) or edges.get(i) or "expanded_conv" + (f"_{i - 1}" if i > 1 else "")
    if name.startswith("exp"):
        name += "_" + {"se_reduce": "squeeze_excite_conv", "se_expand": "squeeze_excite_conv_1"}.get(kind, kind)
    return name, f"{name}_bn"


NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def logits(bundle, images):
    x = torch.from_numpy(np.ascontiguousarray(images))
    with torch.inference_mode():
        return simulate.float_model(bundle)(x)


def assert_same(bundle, source, images, limit=1e-5):
    ours, theirs = logits(bundle, images), logits(source, images)
    assert theirs.std() > 0.1
    assert worst(theirs, ours) < limit
    for field in ("name", "alpha", "rows", "head", "activation", "padding", "num_classes"):
        assert getattr(bundle.card.arch, field) == getattr(source.card.arch, field), field
