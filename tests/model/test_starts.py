"""Weights that a training can start from: a folder of any kind of them, recognised by their tensors, once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torchvision

from mobilenets import files
from mobilenets.arch import zoo
from mobilenets.errors import UserError
from mobilenets.model.convert import starts
from mobilenets.model.convert.starts import Start


@pytest.fixture
def brought(tmp_path, make_bundle, monkeypatch):
    """A folder with a bundle, a file of torchvision's in a folder of its own, one of no network, and a text."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "weights"
    make_bundle("v1").save(root / "mine")
    (root / "others").mkdir()
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), root / "others" / "theirs.pth")
    torch.save({"some.weight": torch.zeros(3)}, root / "stranger.pth")
    (root / "README.md").write_text("weights\n")
    return root


def said(capsys):
    """What stderr had, whatever the width that its lines were broken at."""
    return " ".join(capsys.readouterr().err.split())


def names(found):
    return sorted((Path(s.source).name, s.name, s.alpha, s.resolution) for s in found)


def test_files_are_recognised_by_their_tensors(brought, capsys):
    found = starts.in_folder(brought)
    assert names(found) == [("mine", "v1", 0.25, 32), ("theirs.pth", "v3-small", 1.0, 224)]
    assert all(s.here for s in found)
    text = said(capsys)
    assert "1 file left out: stranger.pth" in text
    assert "README" not in text


def test_a_file_is_looked_at_once(brought, monkeypatch, capsys):
    (brought / "stranger.pth").unlink()
    first = starts.in_folder(brought)
    capsys.readouterr()
    monkeypatch.setattr(starts, "open_foreign", lambda *_: pytest.fail("read again"))
    assert starts.in_folder(brought) == first
    assert capsys.readouterr().err == ""


def test_a_file_that_changed_is_looked_at_again(brought):
    starts.in_folder(brought)
    path = brought / "others" / "theirs.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    os.utime(path, ns=(1, 1))
    assert ("theirs.pth", "v2", 1.0, 224) in names(starts.in_folder(brought))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("content", ["", "[]", '{"x": 3}', '{"/a": {"stamp": [1, 2]}}'])
def test_a_damaged_index_is_made_again(brought, content):
    first = starts.in_folder(brought)
    (files.cache_root() / starts.INDEX).write_text(content)
    assert starts.in_folder(brought) == first
    assert json.loads((files.cache_root() / starts.INDEX).read_text())


def test_they_load(brought):
    for s in starts.in_folder(brought):
        assert s.load().card.arch.name == s.name


def test_folders_that_hold_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights of a network that is known"):
        starts.in_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        starts.in_folder(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        starts.in_folder(tmp_path / "a.txt")


def test_a_folder_of_everything_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "MOST", 3)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("")
    with pytest.raises(UserError, match="over 3 files"):
        starts.in_folder(tmp_path)


def test_int8_bundles_are_left_out(tmp_path, monkeypatch, make_bundle, capsys):
    from mobilenets.compression.quantize import quantize_bundle
    from mobilenets.deploy.export import generated

    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    b = make_bundle("v1")
    quantize_bundle(b, generated(b.card.preprocess)).save(tmp_path / "w" / "int8")
    with pytest.raises(UserError, match="no weights"):
        starts.in_folder(tmp_path / "w")
    assert "training needs float" in said(capsys)


def test_the_environment_names_a_folder_too(brought, monkeypatch):
    monkeypatch.setenv("MOBILENETS_WEIGHTS", str(brought))
    assert {s.name for s in starts.available() if s.here} == {"v1", "v3-small"}


def test_published_ones_count_where_they_can_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path))
    monkeypatch.setattr(starts.web, "reachable", lambda _: True)
    assert len(starts.available()) == 125
    monkeypatch.setattr(starts.web, "reachable", lambda _: False)
    assert starts.available() == []


def test_nearest():
    def start(source, resolution, here=True, top1=None, alpha=1.0):
        return Start(source, "v2", alpha, resolution, top1, here)

    every = [
        start("a", 224), start("b", 128), start("c", 160, here=False), start("d", 128, top1=65.0),
        start("e", 160, alpha=0.5),
    ]  # fmt: skip
    assert starts.nearest(every, zoo.arch("v2", 1.0, 160)).source == "d"  # here before nearer, then the better
    assert starts.nearest(every, zoo.arch("v2", 1.0, 224)).source == "a"
    assert starts.nearest(every, zoo.arch("v2", 0.75, 224)) is None
    assert starts.nearest(every, zoo.arch("v1", 1.0, 224)) is None


def test_what_was_missing_may_come(brought, monkeypatch, capsys):
    """A file that can't be read now is no stranger for ever: its library may be installed, its rights given."""
    real = starts.open_foreign

    def refuse(source, _folder=None):
        raise UserError(f"{source}: reading .h5 files needs h5py")

    monkeypatch.setattr(starts, "open_foreign", refuse)
    assert names(starts.in_folder(brought)) == [("mine", "v1", 0.25, 32)]
    assert "theirs.pth (reading .h5 files needs h5py)" in said(capsys)
    monkeypatch.setattr(starts, "open_foreign", real)
    assert len(starts.in_folder(brought)) == 2


def test_links_that_lead_nowhere_are_left_out(brought, capsys):
    (brought / "loop.h5").symlink_to("loop.h5")
    (brought / "gone.h5").symlink_to("nowhere.h5")
    assert len(starts.in_folder(brought)) == 2
    text = said(capsys)
    assert "gone.h5 (no such file)" in text
    assert "loop.h5" in text


def test_a_damaged_bundle_is_left_out(brought, capsys):
    (brought / "mine" / "weights.safetensors").write_bytes(b"no")
    assert names(starts.in_folder(brought)) == [("theirs.pth", "v3-small", 1.0, 224)]
    assert "mine (" in said(capsys)


def test_other_weights_than_those_that_were_looked_at(brought):
    theirs = next(s for s in starts.in_folder(brought) if s.name == "v3-small")
    torch.save(torchvision.models.mobilenet_v2().state_dict(), brought / "others" / "theirs.pth")
    with pytest.raises(UserError, match="no longer the weights that it was"):
        theirs.load()


def test_a_cache_that_cannot_be_written_is_done_without(brought, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(starts.in_folder(brought)) == 2


@pytest.mark.parametrize("source", ["x" * 5000, "nowhere", "a\0b"])
def test_what_init_cannot_name(source):
    with pytest.raises(UserError):
        starts.opened(source)
