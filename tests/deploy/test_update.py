"""Updates: made of two networks, signed, applied, undone; what is wrong with one is a line, and nothing is changed."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from test_faults import tree
from updating import LABELS, applied, card, digest, install, saved, small, tuned, update

import mobilenets
from mobilenets.deploy.update import delta, keys, labels, package, residual
from mobilenets.deploy.update.contents import Contents
from mobilenets.deploy.update.installed import Installation
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle, packaged, with_random_weights

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return keys.make(tmp_path_factory.mktemp("keys") / "release")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """An old network, a new one, and the update, unsigned."""
    folder = tmp_path_factory.mktemp("networks")
    old, new = saved(folder)
    update(old, new, folder / "u.mnu", version=2)
    return old, new, folder / "u.mnu"


# ---- the difference of arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_what_is_coded_comes_back_bit_for_bit(kind, count):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (count, np.dtype(kind).itemsize), np.uint8).view(kind).reshape(count)  # NaNs too
    base = np.roll(bits, 1)
    for before in (None, base, bits):
        coded = residual.encode(bits, before)
        back = residual.decode(residual.Reader(memoryview(coded)), np.dtype(kind), count, before)
        assert (back.dtype, back.tobytes()) == (bits.dtype, bits.tobytes())


@pytest.mark.parametrize("kind", ["f4", "f2"])
def test_small_differences_of_floats_take_little(kind):
    rng = np.random.default_rng(0)
    base = rng.standard_normal(20000).astype(kind)
    near = (base * 1.001).astype(kind)
    assert len(residual.encode(near, base)) < 0.6 * len(residual.encode(near, None))
    assert len(residual.encode(np.nextafter(base, np.array(2, kind)), base)) < 0.2 * base.nbytes


# ---- networks ------------------------------------------------------------------------------------------------------

CASES = {
    "classifier": (small(), tuned(small(), only="classifier")),
    "all": (small(), tuned(small(), 1e-4)),
    "a class more": (small(), tuned(small((*LABELS, "newt")), 0)),
    "a class less": (small(), small(LABELS[:2])),
    "wider": (small(), small(width=24)),
    "int8": (small(precision="int8"), tuned(small(precision="int8"), 1e-6)),
    "float to int8": (small(), small(precision="int8")),
    "half": (small().encoded("half"), tuned(small(), 1e-3, only="classifier").encoded("half")),
}


@pytest.mark.parametrize("suffix", ["", ".mnz"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_becomes_another_bit_for_bit(case, suffix, tmp_path):
    old, new = saved(tmp_path, suffix, *CASES[case])
    head = update(old, new, tmp_path / "u.mnu")
    assert head.size <= update(old, new, tmp_path / "whole.mnu", whole=True).size
    place = install(old, tmp_path / f"installed{suffix}")
    step = applied(place, tmp_path / "u.mnu")
    assert (step.version_before, step.before, step.head) == (0, digest(old), head)
    assert digest(place) == digest(new)
    now, wanted = Bundle.load(place), Bundle.load(new)
    assert now.card == wanted.card
    assert all(delta.same(now.tensors[k], t) for k, t in wanted.tensors.items())
    assert Installation(place).roll_back() == digest(old)
    assert digest(place) == digest(old)
    assert Installation(place).roll_back() == digest(new)


def test_what_has_changed_takes_little_and_is_named(tmp_path):
    wide = small(width=256)
    old, new = saved(tmp_path, "", wide, tuned(wide, only="classifier"))
    head = update(old, new, tmp_path / "u.mnu")
    whole = update(old, new, tmp_path / "w.mnu", whole=True)
    assert (head.layers, head.more, whole.base) == (("classifier",), 0, "")
    assert head.size < whole.size / 3
    grown = tuned(small((*LABELS, "newt"), width=256), 0)
    grown.save(tmp_path / "grown")
    head = update(old, tmp_path / "grown", tmp_path / "u.mnu")
    assert (head.labels_added, head.labels_removed) == (("newt",), ())


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (LABELS, ""),
        ((*LABELS, "newt"), "new: newt"),
        (LABELS[:2], "gone: frog"),
        (("cat", "hound", "frog"), "renamed: dog to hound"),
        (("dog", "cat", "frog"), "of another number: cat, dog"),
        (("bee", *LABELS[1:], "cow"), "new: bee, cow; gone: cat"),
        (tuple("abcdef"), "new: a, b, c, d and 2 more; gone: cat, dog, frog"),
    ],
)
def test_what_changes_of_the_classes_is_said(after, line, tmp_path):
    assert labels.changed(LABELS, after) == line
    if len(after) <= len(LABELS) + 1 and line:
        old, new = saved(tmp_path, "", small(), tuned(small(after), 0))
        update(old, new, tmp_path / "u.mnu")
        assert applied(old, tmp_path / "u.mnu").labels == line


def test_codes_are_foretold_in_the_new_scales(tmp_path):
    """Weights that stay where they are cost nothing though a channel's largest weight, and so its scale, has moved."""
    old = small(precision="int8", width=128)
    codes, scale = "blocks.1.pointwise.weight", "blocks.1.pointwise.weight_scale"
    tensors = dict(old.tensors)
    tensors[scale] = (old.tensors[scale] * 1.1).astype(np.float32)
    tensors[codes] = np.rint(old.tensors[codes] * (old.tensors[scale] / tensors[scale])[:, None, None, None]).astype(
        "i1"
    )
    paths = saved(tmp_path, "", old, Bundle(old.card.replace(parent="x"), tensors))
    as_they_are = residual.encode(tensors[codes].ravel(), old.tensors[codes].ravel())
    assert update(*paths, tmp_path / "u.mnu").size < len(as_they_are)


def test_the_packaged_network_of_another_format(tmp_path):
    """A card of format 1, its weights in halves: from and to."""
    old, new = tmp_path / "old", tmp_path / "new"
    source = Bundle.load("cifar10-v1-0.25")
    tuned(source, only="classifier").save(new)
    install(packaged()["cifar10-v1-0.25"], old)
    head = update(old, new, tmp_path / "u.mnu")
    assert head.size < 12000
    applied(old, tmp_path / "u.mnu")
    assert digest(old) == digest(new)


# ---- versions, keys, names -----------------------------------------------------------------------------------------


def held(installed):
    """What there is, but for the lock."""
    if not installed.is_dir():
        return installed.read_bytes()
    return {k: v for k, v in tree(installed).items() if k != "lock"}


def refused(installed, file, match, key=None, **options):
    before = held(installed)
    with pytest.raises(UserError, match=match) as e:
        applied(installed, file, key, **options)
    assert "\n" not in str(e.value)
    assert held(installed) == before


def test_versions_only_go_up(networks, tmp_path):
    old, new, u = networks
    third = tmp_path / "third"
    tuned(small(), seed=3, only="classifier").save(third)
    update(new, third, tmp_path / "3.mnu", version=3)
    update(third, old, tmp_path / "1.mnu", version=1)
    update(third, new, tmp_path / "w2.mnu", version=2, whole=True)
    place = install(old, tmp_path / "installed")
    applied(place, u)
    refused(place, u, "version 2 is installed already")
    applied(place, tmp_path / "3.mnu")
    assert not (place / "card.json").exists()  # the first version isn't kept any longer
    assert len([*(place / "versions").iterdir()]) == 2
    for older in ("1.mnu", "w2.mnu"):
        refused(place, tmp_path / older, r"version \d isn't newer than 3, which was installed here; --allow-rollback")
    Installation(place).roll_back()
    refused(place, tmp_path / "1.mnu", "isn't newer than 3")
    applied(place, tmp_path / "3.mnu")  # again, by hand
    assert digest(place) == digest(third)
    applied(place, tmp_path / "w2.mnu", allow_rollback=True)
    assert digest(place) == digest(new)
    applied(place, tmp_path / "3.mnu")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "../../x", "a\\b", "c:", " ", "x" * 101])
def test_a_network_is_called_what_can_be_printed_and_be_in_a_files_name(networks, tmp_path, name):
    with pytest.raises(UserError, match="letters that can be printed"):
        update(*networks[:2], tmp_path / "u.mnu", version=2, name=name)
    assert not list(tmp_path.iterdir())


def test_an_update_for_another_network(networks, tmp_path):
    old, new, u = networks
    refused(install(new, tmp_path / "new"), u, "version 2 is installed already")
    stranger = tmp_path / "stranger"
    tuned(small(), seed=9).save(stranger)
    refused(stranger, u, r"changes the network \w{16}, and here is \w{16}; nothing was changed")
    place = install(old, tmp_path / "installed")
    applied(place, u)
    update(new, stranger, tmp_path / "w.mnu", whole=True, name="faces")
    refused(place, tmp_path / "w.mnu", "for the network 'faces', and here is 'network'")
    with pytest.raises(UserError, match="no network is installed there"):
        Installation(tmp_path / "nowhere")
    features = with_random_weights(dataclasses.replace(small().card, task="features", config={}))
    features.save(tmp_path / "features")
    with pytest.raises(UserError, match="a network for features can't take the place of one for classify"):
        update(old, tmp_path / "features", tmp_path / "x.mnu")
    with pytest.raises(UserError, match="both are the same network"):
        update(old, old, tmp_path / "x.mnu")
    assert not (tmp_path / "x.mnu").exists()


def test_keys(networks, key, tmp_path):
    old, new, unsigned = networks
    private, public = key
    assert private.stat().st_mode & 0o077 == 0
    signed = tmp_path / "s.mnu"
    update(old, new, signed, key=keys.signing(private), version=2)
    other = keys.verifying(keys.make(tmp_path / "other")[1])
    place = install(old, tmp_path / "installed")
    refused(place, signed, "say by --verify which key you trust")
    refused(place, signed, r"not signed by \w{16} but by \w{16}, or altered since", other)
    refused(place, unsigned, "not signed, and .* must have signed it", other)
    applied(place, signed, keys.verifying(public))
    third = tmp_path / "third"
    tuned(small(), seed=3).save(third)
    update(new, third, tmp_path / "3.mnu", version=3)
    refused(place, tmp_path / "3.mnu", "not signed, and")  # the key is remembered
    update(new, third, tmp_path / "4.mnu", version=4, key=keys.signing(tmp_path / "other"))
    refused(place, tmp_path / "4.mnu", "not signed by")
    update(new, third, tmp_path / "5.mnu", version=5, key=keys.signing(private))
    applied(place, tmp_path / "5.mnu")
    assert digest(place) == digest(third)


def test_files_that_are_no_keys(tmp_path, key):
    with pytest.raises(UserError, match="is there already"):
        keys.make(key[0])
    (tmp_path / "text").write_text("hello")
    for read in (keys.signing, keys.verifying):
        with pytest.raises(UserError, match=r"not a .*key"):
            read(tmp_path / "text")
        with pytest.raises(UserError, match="no key can be read there"):
            read(tmp_path / "none")
    with pytest.raises(UserError, match="not a key that signs"):
        keys.signing(key[1])
    with pytest.raises(UserError, match=r"is the key that signs, and is to stay where it is; \w+\.pub verifies"):
        keys.verifying(key[0])


@pytest.mark.parametrize("name", ["", "..", "/"])
def test_a_key_has_a_name(name):
    with pytest.raises(UserError, match="is no name of a file"):
        keys.make(Path(name))


def test_a_key_that_another_process_makes_meanwhile_stays(tmp_path, monkeypatch):
    first, _ = keys.make(tmp_path / "key")
    before = first.read_bytes()
    monkeypatch.setattr("os.path.lexists", lambda _path: False)
    with pytest.raises(UserError, match="is there already"):
        keys.make(tmp_path / "key")
    assert first.read_bytes() == before


def test_a_key_that_is_left_empty_is_not_left_out(networks, tmp_path):
    """As by a variable that isn't set: an update would be taken from anybody."""
    old, new, u = networks
    place = install(old, tmp_path / "installed")
    for call in (
        lambda: mobilenets.apply_update(place, u, verify=""),
        lambda: mobilenets.show_update(u, verify=""),
        lambda: mobilenets.make_update(old, new, out=tmp_path / "x.mnu", sign=""),
    ):
        with pytest.raises(UserError, match="no key can be read there"):
            call()
    assert digest(place) == digest(old)


def test_a_link_to_nowhere_is_no_place_for_a_key(tmp_path):
    (tmp_path / "key").symlink_to("nowhere")
    with pytest.raises(UserError, match="is there already"):
        keys.make(tmp_path / "key")
    assert (tmp_path / "key").is_symlink()


def test_a_link_to_a_file_names_what_is_updated(tmp_path):
    old, new = saved(tmp_path, ".mnz")
    update(old, new, tmp_path / "u.mnu", version=2)
    link = tmp_path / "link.mnz"
    link.symlink_to(old.name)
    applied(link, tmp_path / "u.mnu")
    assert link.is_symlink()
    assert digest(old) == digest(new)
    Installation(old).roll_back()
    assert digest(link) != digest(new)


# ---- files that can't be -------------------------------------------------------------------------------------------


def resealed(file, head=None, body=None):
    """An unsigned update with another head or body, its digests and its seal right."""
    made = package.read(file)
    body = bytes(made.body) if body is None else body
    d = {**made.head.to_json(), "size": len(body), "sha256": hashlib.sha256(body).hexdigest(), **(head or {})}
    text = json.dumps(d).encode()
    start = package.MAGIC + len(text).to_bytes(4, "little") + text
    return start + hashlib.sha512(start).digest() + body


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ({"version": 0}, "cut off or damaged"),
        ({"version": 2.5}, "cut off or damaged"),
        ({"size": 10}, "cut off or damaged"),
        ({"size": 1 << 40}, "cut off or damaged"),
        ({"kind": "half"}, "cut off or damaged"),
        ({"made": "today"}, "cut off or damaged"),
        ({"layers": None}, "cut off or damaged"),
        ({"version": 10**19}, "cut off or damaged"),
        ({"base": "../../x"}, "cut off or damaged"),
        ({"base": "", "name": "a/../../b"}, "cut off or damaged"),
        ({"to": "x"}, "cut off or damaged"),
        ({"format": 9}, "written by a newer mobilenets"),
        ({"to": "0" * 64}, "makes another network than it says"),
        ({"kind": "full"}, "can't be applied: its network: not a .mnz file"),
    ],
)
def test_heads_that_can_not_be(networks, head, line, tmp_path):
    old, _, u = networks
    file = tmp_path / "x.mnu"
    file.write_bytes(resealed(u, head))
    refused(install(old, tmp_path / "installed"), file, line)


def test_bombs(networks, tmp_path):
    """What would take gigabytes when it is unpacked is refused before it does."""
    old, new, u = networks
    base = delta._text(Contents.read(old))
    wide = {**Contents.read(new).card, **card(width=1 << 16, first=1 << 16).to_json()}
    wide["digest"] = hashlib.sha256(bundles._canonical(wide)).hexdigest()
    huge = residual.block(delta._deflate(json.dumps(wide).encode(), base)) + b"\2" * 64
    for body, line in (
        (residual.block(delta._deflate(b" " * (64 << 20), base)), "cut off, or larger than it may be"),
        (huge, "it would take .* bytes, more than can come of an update of its size"),
        (b"\xff\xff\xff\xff", "it has .* bytes where .* are the most"),
        (b"", "it ends too early"),
    ):
        file, place = tmp_path / "x.mnu", tmp_path / "installed"
        file.write_bytes(resealed(u, body=body))
        refused(place if place.exists() else install(old, place), file, line)


def test_a_pointer_out_of_its_folder(networks, tmp_path):
    old, _, _ = networks
    place = install(old, tmp_path / "installed")
    for name in ("../old", "/etc", 3, None):
        (place / "installed.json").write_text(json.dumps({"current": name}))
        with pytest.raises(UserError, match="names a version outside of its folder"):
            Bundle.load(place)
