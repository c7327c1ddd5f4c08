"""`mobilenets import`: others' weights as a bundle."""

from __future__ import annotations

from mobilenets.arch.graph import Padding
from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.model.bundle import Bundle, check_out
from mobilenets.model.convert.weights import foreign_bundle, open_foreign, read_labels


@checked
def import_weights(
    source: DataSource,
    *,
    out: StrPath,
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    labels: StrPath | None = None,
    padding: Padding | None = None,
    bn_eps: float | None = None,
) -> Bundle:
    """Turn weights that others trained into a bundle; the network is recognised by its tensors.

    Parameters
    ----------
    source
        torchvision:NAME or timm:NAME (torchvision:mobilenet_v2, timm:mobilenetv4_conv_small.e2400_r224_in1k), or a
        file: PyTorch .pth or .safetensors, Keras .h5, TensorFlow checkpoint (.index), TFLite (float or quantized).
    out
        Folder of the bundle.
    arch
        What it should be: v1, v2, v3-large, ...; anything else is refused.
    alpha
        The width it should have.
    resolution
        Input height and width in pixels, where the source doesn't say.
    labels
        File with a label a line; ImageNet's for 1000 classes (or 1001, with background), if left out.
    padding
        symmetric (PyTorch) or same (TensorFlow), where the library's own is wrong.
    bn_eps
        BatchNorm's epsilon, where the library's own is wrong.

    Returns
    -------
    Bundle
        Card and float32 tensors, as they are in `out` now: `module()` makes the PyTorch network of it.

    Raises
    ------
    UserError
        For a source that isn't there or can't be read, tensors of no network that is known, or of another than asked
        for; a folder that holds anything else.

    Examples
    --------
    Any state_dict of a network that is known, under torchvision's, timm's, Keras's or TF-slim's names:

    >>> import mobilenets, torch, torchvision
    >>> torch.save(torchvision.models.mobilenet_v2(num_classes=10).state_dict(), "theirs.pth")
    >>> mobilenets.import_weights("theirs.pth", out="bundles/v2").card.arch.title
    'v2 1-224'
    """
    out = as_path(out)
    check_out(out)
    named = read_labels(as_path(labels)) if labels else None
    return foreign_bundle(open_foreign(str(source)), arch, alpha, resolution, named, padding, bn_eps).save(out)
