"""Where a classifier looks, how images lie in its features, and which labels are in doubt."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Pixels
from mobilenets.reports import samples, sight
from mobilenets.reports.sight import Sight
from mobilenets.tasks.looking import activation


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_the_maps_mean_is_what_the_classifier_reads(
    name: str, make_bundle: Callable[..., Bundle], pixels: Pixels
) -> None:
    bundle = make_bundle(name)
    found = Sight.of(bundle)
    assert found is not None
    means = found.maps(pixels).mean((2, 3))
    logits = means @ found.weights.T + bundle.tensors["classifier.bias"]
    np.testing.assert_allclose(softmax(logits), found.engine(pixels)["probabilities"], atol=1e-5)


def test_a_network_with_layers_after_its_pooling_has_none(make_bundle: Callable[..., Bundle]) -> None:
    assert Sight.of(make_bundle("v3-small")) is None


def test_it_looks_where_the_label_has_its_reasons() -> None:
    last = np.zeros((2, 2, 3), np.float32)
    last[0, 0, 1], last[1, 1, 2], last[0, 1, 0] = 4, 8, 2
    np.testing.assert_array_equal(activation(last, np.array([1, -1], np.float32)), [[0, 1, 0], [0.5, 0, 0]])
    assert not activation(last, np.array([-1, 0], np.float32)).any()


def test_a_look_is_a_picture_of_the_map(make_bundle: Callable[..., Bundle]) -> None:
    found = Sight.of(make_bundle("v1"))
    assert found is not None
    last = np.zeros((found.weights.shape[1], 3, 2), np.float32)
    last[:, 2, 1] = found.weights[4]
    uri = found.look(last, 4)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert image.shape == (3, 2, 4)
    assert image[2, 1, 3] == 0
    assert image[..., 3].sum() == 5 * sight.OPAQUE


def test_images_alike_lie_together() -> None:
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 12)
    vectors = (10 * np.eye(3)[true] + rng.normal(0, 0.3, (36, 3))).astype(np.float32)
    places = sight.placed(vectors, 0)
    centres = np.stack([places[true == c].mean(0) for c in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres[None], axis=2).argmin(1)
    assert (nearest == true).all()
    np.testing.assert_array_equal(places, sight.placed(vectors, 0))
    given = true.copy()
    given[0] = 2
    legend = sight.plane(places, true, given, [f"kind {c}" for c in range(3)]).legends[0]
    assert [t.get_text() for t in legend.get_texts()] == ["kind 0", "kind 1", "kind 2", "a mistake"]


def test_of_many_classes_those_with_mistakes_have_a_colour() -> None:
    true = np.arange(40) % 20
    given = true.copy()
    given[19] = 0
    legend = sight.plane(np.zeros((40, 2), np.float32), true, given, [f"kind {c}" for c in range(20)]).legends[0]
    texts = [t.get_text() for t in legend.get_texts()]
    assert len(texts) == len(sight.COLOURS) + 2
    assert "kind 19" in texts
    assert "12 others" in texts


def test_a_label_that_is_likely_wrong_is_in_doubt() -> None:
    """Where all of a split was seen; of a part it can't be told what is usual."""
    found = [{"scores": np.array([0.9, 0.1]), "true": 0, "best": 0} for _ in range(5)]
    found += [{"scores": np.array([0.2, 0.8]), "true": 1, "best": 1} for _ in range(5)]
    found += [{"scores": np.array([0.05, 0.95]), "true": 0, "best": 1}]
    samples._doubt(found, 11)
    assert [s["doubted"] > 0 for s in found] == [False] * 10 + [True]
    samples._doubt(found, 12)
    assert not any(s["doubted"] for s in found)
    worse = [{**s, "best": 1 - s["true"]} for s in found]
    samples._doubt(worse, 11)
    assert not any(s["doubted"] for s in worse)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_network_that_sees_nothing_has_no_map(value: float) -> None:
    with pytest.raises(UserError, match="sees the same in all images"):
        sight.placed(np.full((20, 8), value, np.float32), 0)
