"""What imported classes are called, whose weights they are, and that nothing says where the files lay."""

import dataclasses

import numpy as np
import pytest
import torch
from foreign_files import write_h5
from test_weights import NORM, keras_v1, named_arrays
from torchvision import models

from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import labels
from mobilenets.model.convert.foreign import Foreign, Stated
from mobilenets.model.convert.weights import foreign_bundle, open_foreign

NAMES = tuple(imagenet.classes().values())
# As TensorFlow's label files have them.
SYNONYMS = tuple({"crane bird": "crane", "maillot tank suit": "maillot, tank suit"}.get(n, n) for n in NAMES)
SYNONYMS = tuple(f"{n}, another name, a third" for n in SYNONYMS)


def test_imagenets_names_are_the_same_from_every_source():
    for theirs in (NAMES, SYNONYMS, tuple(n.upper().replace(" ", "_") for n in NAMES), tuple(imagenet.classes())):
        assert labels.shown(theirs) == NAMES


def test_labels_in_another_order_stay_in_it():
    order = np.random.default_rng(0).permutation(1000)
    shuffled = labels.shown([SYNONYMS[i] for i in order])
    first = [SYNONYMS[i].split(",")[0] for i in order]
    assert first.count("crane") == first.count("maillot") == 2  # which stay whole
    assert all(a == b for a, b in zip(shuffled, first, strict=True) if b not in ("crane", "maillot"))
    ids = tuple(imagenet.classes())
    assert labels.shown([ids[i] for i in order]) == tuple(NAMES[i] for i in order)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (("tabby, tabby cat", "Egyptian cat"), ("tabby", "Egyptian cat")),
        (("Paris, Texas", "Paris, France", "Rome, Italy"), ("Paris, Texas", "Paris, France", "Rome")),
        ((", a", "b"), (", a", "b")),
        (("n01440764", "other"), ("n01440764", "other")),
    ],
)
def test_of_several_names_the_first_is_shown(given, want):
    assert labels.shown(given) == want


def classifier(make_bundle, classes):
    bundle = make_bundle("v1", "same")
    arch = bundle.card.arch.replace(num_classes=classes)
    tensors = {
        **bundle.tensors,
        "classifier.weight": np.ones((classes, arch.features), np.float32),
        "classifier.bias": np.ones(classes, np.float32),
    }
    card = dataclasses.replace(bundle.card, arch=arch, config={"labels": [""] * classes})
    return named_arrays(Bundle(card, tensors), keras_v1, "kernel", "bias", NORM)


def test_all_names_are_kept_and_licences_are_known(make_bundle):
    arrays = classifier(make_bundle, 1001)
    card = foreign_bundle(Foreign("/home/me/w_224.h5", arrays, Stated(labels=("background", *SYNONYMS)))).card
    assert card.labels == NAMES
    assert card.config["names"] == list(SYNONYMS)
    assert (card.licence, card.metrics[0].value) == ("Apache-2.0", 49.8)  # TensorFlow's own, by all that is known
    assert card.recipe["imported_from"] == "w_224.h5"
    own = foreign_bundle(Foreign("w_224.h5", arrays, Stated(labels=tuple(f"thing {i}" for i in range(1001))))).card
    assert (own.licence, own.metrics) == ("", ())
    assert "names" not in own.config


def test_cards_hold_no_paths(imported, make_bundle, tmp_path):
    path = write_h5(tmp_path / "w.h5", classifier(make_bundle, 5))
    assert str(tmp_path) not in str(imported(path).card.to_json())


def test_torchvisions_own_file_is_known_by_its_digest(imported, tmp_path, monkeypatch):
    torch.save(models.mobilenet_v2().state_dict(), tmp_path / "renamed.pth")
    weights = models.MobileNet_V2_Weights.IMAGENET1K_V1
    monkeypatch.setattr("mobilenets.model.convert.weights.files.sha256", lambda _: "b0353104" + 56 * "0")
    foreign = open_foreign(str(tmp_path / "renamed.pth"))
    card = foreign_bundle(foreign).card
    assert card.licence == "BSD-3-Clause"
    assert card.recipe["imported_from"] == "torchvision:mobilenet_v2.IMAGENET1K_V1"
    assert card.recipe["url"] == weights.url
    assert "assumed" not in card.recipe
    monkeypatch.undo()
    assert imported(tmp_path / "renamed.pth").card.licence == ""


def test_too_few_labels(make_bundle):
    with pytest.raises(UserError, match="there are 2 labels for 5 classes"):
        foreign_bundle(Foreign("w.h5", classifier(make_bundle, 5), Stated(labels=("a", "b"))))
