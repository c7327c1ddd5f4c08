"""`mobilenets compress`: a float bundle in a size that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.data.source import Reading, named
from mobilenets.errors import UserError, needed_by
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import find

Method = Literal["kmeans", "product", "hash", "prune", "int8", "int4", "int3", "int2", "ternary", "binary"]
CALIBRATION_IMAGES = 256


@checked
def compress(
    bundle: StrPath,
    data: DataSource | None = None,
    *,
    out: StrPath,
    max_size_kb: float | None = None,
    max_drop: float | None = None,
    method: Method | None = None,
    bits: int = 4,
    block: int = 4,
    codes: int = 256,
    ratio: int = 8,
    sparsity: float = 0.7,
    epochs: int = 3,
    teacher: StrPath | None = None,
    images: int = CALIBRATION_IMAGES,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Bundle:
    """Store a float bundle in as few bytes as you say, with the least loss, or in the way that you say.

    Parameters
    ----------
    bundle
        A float bundle's folder or .mnz file, or a run's.
    data
        Labelled images, to measure what is lost and to train on; those that the bundle was trained on, if left out.
    out
        What to write: NAME.mnz, one entropy-coded file; any other name is a bundle's folder, its codes in whole bytes.
    max_size_kb
        Size of the .mnz file, in units of 1,000 bytes: for each layer, the way is chosen that answers least feel.
    max_drop
        What may be lost of the task's score on the val split: a classifier, points of top-1. If more is, nothing is
        written.
    method
        One way for all layers instead: codebooks of values (kmeans) or of runs of them (product), hashed buckets
        (hash), zeros (prune), levels (int8, int4, int3, int2, ternary, binary).
    bits
        Bits of a code, for kmeans.
    block
        Weights in a run, for product.
    codes
        Runs in a codebook, for product, a power of two up to 256.
    ratio
        Weights for each bucket, for hash.
    sparsity
        Share of the weights that become zero, for prune.
    epochs
        Passes over the training images in which codebooks, codes and BatchNorm learn to answer as the float network
        does; 0 for none.
    teacher
        A float bundle or run whose answers are learned instead, as the network's before it was pruned.
    images
        Training images, at most, that show what each layer's weights matter.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Bundle
        The compressed bundle, its val score on its card. It runs and exports as any other; `explain --compression`
        shows where its bytes are.

    Raises
    ------
    UserError
        For a bundle that isn't float, a size or a loss that can't be met: it says the nearest, and its score; numbers
        that can't be.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.compress("runs/flowers", "flowers", out="small.mnz", method="kmeans", epochs=0, images=24)
    >>> sorted(set(made.card.encodings.values()))
    ['kmeans-4']
    """
    out = Path(out)
    bundles.check_out(out)
    if (max_size_kb is None) == (method is None):
        raise UserError("say how small it is to be (--max-size-kb 300), or one way to store all (--method kmeans)")
    if max_size_kb is not None and not 0 < max_size_kb < 1e9:
        raise UserError(f"max-size-kb must be above 0, not {max_size_kb:g}")
    if max_drop is not None and not max_drop >= 0:
        raise UserError(f"max-drop must be 0 or more, not {max_drop:g}")
    if not 0 < sparsity < 1:
        raise UserError(f"sparsity must be between 0 and 1, not {sparsity:g}")
    if images < 1 or epochs < 0:
        raise UserError("images must be at least 1, epochs at least 0")
    named_by = {
        "kmeans": f"kmeans-{bits}",
        "product": f"product-{block}-{codes}",
        "hash": f"hashed-{ratio}",
        "prune": f"sparse-{round(100 * sparsity)}",
    }
    encoding = named_by.get(method, method) if method else ""
    if encoding:
        find(encoding)  # says which numbers it takes
    source = Bundle.load(bundles.find_bundle(Path(bundle)))
    if source.card.precision != "float32":
        raise UserError(f"this bundle is {source.card.precision} already; compress the float bundle it came from")
    taught = Bundle.load(bundles.find_bundle(Path(teacher))) if teacher is not None else None
    with needed_by("compress"):
        import constriction  # noqa: F401  (all sizes are those of coded files)
    from mobilenets.compression.budget import Plan, check_teacher, compressed
    from mobilenets.tasks import data_of

    if taught is not None:
        check_teacher(source, taught)
    dataset = data_of(source.card, named(data, reading), as_path(root))
    pixels = dataset.sample("train", images, source.card.preprocess).pixels
    size = None if max_size_kb is None else int(1000 * max_size_kb)
    return compressed(source, dataset, pixels, Plan(size, encoding, max_drop, epochs, taught)).save(out)
