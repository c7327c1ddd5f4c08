"""What is found wrong with boxes, by kind, in words. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mobilenets.console import many, plain
from mobilenets.data.annotations.raw import some

# By kind: what is counted, and what is so of it. Items begin with the image's name.
KINDS = {
    "missing": ("image", "in the annotations that isn't there, left out"),
    "unreadable": ("image", "whose size can't be read, left out"),
    "unannotated": ("image", "without annotations, left out"),
    "unlisted": ("image", "in no split, left out"),
    "unknown_image": ("annotation", "of an image that isn't listed, left out"),
    "repeated": ("image", "listed more than once: its boxes were put together"),
    "mismatched": ("image", "of other proportions than its annotations say, left out"),
    "misstated": ("image", "of another size than its annotations say, whose boxes fit it nevertheless"),
    "resized": ("image", "of another size than its annotations say: its boxes were scaled"),
    "turned": ("image", "that its camera turns, with boxes of the unturned picture: they were turned too"),
    "maybe_turned": ("image", "that its camera turns: its boxes were taken to be of the upright picture"),
    "degenerate": ("box", "without width and height, or of no numbers, left out"),
    "outside": ("box", "outside of its image, left out"),
    "clipped": ("box", "partly outside of its image, clipped"),
    "unknown_class": ("box", "of a category that has no name, left out"),
    "unlabelled": ("shape", "without a label, left out"),
    "other_shape": ("image", "with shapes that are no boxes, polygons or masks, left out"),
    "duplicate": ("box", "that is there twice, with its class and corners"),
    "bad_mask": ("mask", "that can't be read: the box stands for it"),
    "no_mask": ("box", "without a mask, among others that have one: its box stands for it"),
    "no_boxes": ("image", "without boxes, kept: there is nothing to find in it"),
}
GOOD = ("no_boxes",)  # kinds that are as they may be


def lines(faults: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for each kind that was found."""
    for kind, (noun, words) in KINDS.items():
        if items := faults.get(kind):
            yield plain(f"{many(len(items), noun)} {words}: {some(items)}")
