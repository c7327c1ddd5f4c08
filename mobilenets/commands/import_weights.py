"""`mobilenets import`: others' weights as a bundle."""

from __future__ import annotations

from mobilenets import console
from mobilenets.arch.operations import Padding
from mobilenets.arguments import DataSource, StrPath, as_path, checked, several
from mobilenets.commands.options import Floats
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, check_out
from mobilenets.model.convert.foreign import Channels, Stated
from mobilenets.model.convert.labels import read_labels
from mobilenets.model.convert.weights import assumptions, foreign_bundle, open_foreign
from mobilenets.model.images import Interpolation


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
    mean: Floats | None = None,
    std: Floats | None = None,
    crop: float | None = None,
    interpolation: Interpolation | None = None,
    body_only: bool = False,
    weights: StrPath | None = None,
) -> Bundle:
    """Turn weights that others trained into a bundle; the network is recognised by its tensors.

    What neither the file nor a config.json beside it says is assumed as the library usually has it, and named.

    Parameters
    ----------
    source
        Published weights by name: keras:v2-1.0-224, slim:v3-small-1.0-224, torchvision:mobilenet_v2,
        timm:mobilenetv4_conv_small (`mobilenets list --weights` has all), fetched once; or a file: PyTorch .pth or
        .safetensors, Keras .h5 or .keras, TensorFlow checkpoint (.index) or frozen graph (.pb), TFLite (float or
        quantized); or the folder of a model from the Hub. Detectors too: TensorFlow's SSD and SSDLite, torchvision's.
    out
        Folder of the bundle.
    arch
        What it should be: v1, v2, v3-large, ...; anything else is refused.
    alpha
        The width it should have.
    resolution
        Input height and width in pixels, where the source doesn't say.
    labels
        File with a label a line, of "tench, Tinca tinca" the first name is shown; ImageNet's for 1000 classes (or
        1001, with background), if left out.
    padding
        symmetric (PyTorch) or same (TensorFlow), where the library's own is wrong.
    bn_eps
        BatchNorm's epsilon, where the library's own is wrong.
    mean
        What is subtracted from pixels, one number or three with commas between: of 0..1 as PyTorch's transforms have
        it (0.485,0.456,0.406), or of 0..255 where a number of it or of --std is over 1.
    std
        What pixels are then divided by, in the same way.
    crop
        Share of an image's short side that is seen, 0.875 for most.
    interpolation
        How images are resized: bilinear or bicubic.
    body_only
        Leave out the classifier and all else after the pooling, for fine-tuning to give it a new one.
    weights
        Folder where published weights may be (`mobilenets fetch --to`), before they are fetched.

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
    scale = 1 if any(abs(v) > 1 for v in (*several(mean or ()), *several(std or ()))) else 255
    told = Stated(
        arch=arch, alpha=alpha, resolution=resolution, labels=read_labels(as_path(labels)) if labels else None,
        padding=padding, bn_eps=bn_eps, crop=crop, interpolation=interpolation, mean=_pixels("mean", mean, scale),
        std=_pixels("std", std, scale),
    )  # fmt: skip
    foreign = open_foreign(str(source), as_path(weights))
    made = foreign_bundle(foreign, told, body_only).save(out)
    if assumed := assumptions(made.card):
        library = made.card.recipe["library"]
        console.note(
            f"{foreign.name} doesn't say all that its network does; assumed, as is usual in {library}: {assumed}. "
            f"Where that is wrong, say what is right (mobilenets import --help){HINTS.get(library, '')}"
        )
    return made


# Networks of the same tensors that compute something else.
HINTS = {
    "timm": "; timm's tf_ networks have --padding same --bn-eps 0.001 --mean 0.5 --std 0.5 --interpolation bilinear",
}


def _pixels(name: str, given: Floats | None, scale: int) -> Channels | None:
    """Numbers of the command line as such of 0..255, one for each channel."""
    if given is None:
        return None
    values = several(given)
    if len(values) not in (1, 3) or not all(abs(v) < 1e6 for v in values):
        raise UserError(f"--{name} takes one number or three with commas between, not {','.join(map(str, values))}")
    first, second, third = (round(scale * v, 6) for v in (values * 3)[:3])
    return first, second, third
