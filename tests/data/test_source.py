"""A source and how it is read, as one text and back."""

import dataclasses

import pytest

import mobilenets
from mobilenets.data.source import Reading, Source, named, spelled
from mobilenets.errors import UserError

ALL = Reading(
    label_column="the breed",
    images_column="a'b",
    split_column="s",
    group_column="é",
    val_from="/more val/x.zip",
    limit_per_class=7,
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source("photos"), "photos"),
        (Source("my photos.zip", Reading(class_from_name=True)), "name:my photos.zip"),
        (Source("a b.csv", Reading(label_column="breed")), "a b.csv --label-column breed"),
        (Source("cifar10", Reading(limit_per_class=10)), "cifar10 --limit-per-class 10"),
    ],
)
def test_a_source_is_one_text(source, text):
    assert str(source) == text == spelled(source.path, source.reading)
    assert Source.parse(text) == source


@pytest.mark.parametrize("reading", [ALL, dataclasses.replace(ALL, class_from_name=True), Reading(), None])
@pytest.mark.parametrize("path", ["photos", "/a/ b --c.csv", "https://x.org/shards?a=b"])
def test_the_text_reads_back(path, reading):
    assert Source.parse(spelled(path, reading)) == Source(path, reading or Reading())


@pytest.mark.parametrize(
    "text",
    ["x.csv --label-column 'open", "x.csv --limit-per-class many", "x --limit-per-class 0", "x --label-column a b"],
)
def test_a_text_that_cant_be_is_one_line(text):
    with pytest.raises(UserError) as e:
        Source.parse(text)
    assert "\n" not in str(e.value)


def test_options_need_data_that_they_are_of():
    assert named(None, None) is named(None, Reading()) is None
    with pytest.raises(UserError, match="--label-column says how data is read: name the data too"):
        named(None, Reading(label_column="x"))
    with pytest.raises(UserError, match="limit_per_class must be 1 or more, not 0"):
        mobilenets.Reading(limit_per_class=0)
