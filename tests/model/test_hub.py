"""Bundles of the Hub: addresses, what is fetched and kept, and what is refused."""

import json
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from fake_hub import Hub

import mobilenets
from mobilenets import files, web
from mobilenets.errors import UserError
from mobilenets.model import hub
from mobilenets.model.bundle import Bundle, located
from mobilenets.training.teachers import open_teacher

NAME = "cifar10-v1-0.25"
ADDRESS = "hf://me/tiny"


@pytest.fixture
def server(serve, monkeypatch):  # noqa: ARG001  (its cache, and its patience)
    """An empty Hub, and an empty cache."""
    made = Hub("secret")
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "MOBILENETS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    yield made
    if made.thread.is_alive():
        made.close()


def content(bundle=None, tmp_path=None):
    folder = located(Path(NAME))
    if bundle:
        bundle.save(tmp_path / "saved")
        folder = tmp_path / "saved"
    return {name: (folder / name).read_bytes() for name in (hub.CARD, hub.WEIGHTS)}


def kept():
    root = files.cache_root() / "hub"
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) if root.exists() else []


# ---- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://me/tiny", "me/tiny", "main"),
        ("hf:/me/v2-0.5_x", "me/v2-0.5_x", "main"),
        ("hf://me/tiny@v1.0", "me/tiny", "v1.0"),
        ("hf://me/tiny@refs/pr/1", "me/tiny", "refs/pr/1"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_addresses(text, repository, revision, kind):
    assert hub.is_address(kind(text))
    address = hub.parse(kind(text))
    assert (address.repository, address.revision) == (repository, revision)
    assert hub.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["hf://me", "hf://me/x/y", "hf://../x", "hf://me/..", "hf://me/x@", "hf://me/x@../../y", "hf://me/x y",
     "hf://me/x?y=1", "hf://me/x#y", "hf://mé/x", "hf://me/x@a\nb"],
)  # fmt: skip
def test_what_is_no_address(server, text):
    with pytest.raises(UserError, match=r"(?s)^hf:.*: not an address of the Hub: hf://user/name, or "):
        located(Path(text))
    assert server.asked == []


def test_paths_are_no_addresses():
    assert not any(map(hub.is_address, ("me/x", "/hf:/me/x", "https://me/x", "hf", "s3://me/x")))
    assert PureWindowsPath("hf://me/x").as_posix().startswith(hub.SCHEME)


# ---- wherever a bundle's path is taken -----------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@refs/pr/2"])
def test_a_bundle_is_loaded_by_its_address(server, revision):
    commit = server.put("me/tiny", {**content(), "pytorch_model.bin": b"a pickle"}, revision[1:] or "main")
    b = Bundle.load(ADDRESS + revision)
    assert b.digest == Bundle.load(NAME).digest
    assert {path.rpartition("/")[2] for _, path in server.asked[1:]} == {hub.CARD, hub.WEIGHTS}
    assert f"me/tiny/{commit}/{hub.WEIGHTS}" in kept()


@pytest.mark.slow
def test_every_door_takes_one(server, command, tmp_path, colours, tiny_train):
    server.put("me/tiny", content())
    known = mobilenets.load(NAME)
    image = next(colours.rglob("*.png"))
    assert mobilenets.load(ADDRESS).predict(image).top == known.predict(image).top
    assert mobilenets.create("v1-cifar", pretrained=ADDRESS, num_classes=3).num_classes == 3
    assert mobilenets.predict(Path(ADDRESS), image, task="features")[0].error is None
    assert open_teacher(ADDRESS).labels == known.card.labels
    assert command("show", ADDRESS).code == 0
    assert command("export", ADDRESS, "--out", tmp_path / "x.onnx").code == 0
    ran = tiny_train(tmp_path / "run", "--init", ADDRESS, "--epochs", 1).ran
    assert ran.code == 0, ran.err
    fetches = [path for _, path in server.asked if "resolve" in path]
    assert len(fetches) == 2  # once for all of them


def test_a_file_of_weights_by_its_ending_is_still_a_repository(server):
    server.put("me/x.pt", content())
    assert mobilenets.create("v1-cifar", pretrained="hf://me/x.pt").num_classes == 10


# ---- kept ----------------------------------------------------------------------------------------------------------


def test_a_new_commit_is_fetched_and_the_old_one_stays(server, make_bundle, tmp_path):
    first = server.put("me/tiny", content())
    before = Bundle.load(ADDRESS)
    server.put("me/tiny", content(make_bundle("v1"), tmp_path))
    after = Bundle.load(ADDRESS)
    assert after.card.arch.name == "v1"
    asked = len(server.asked)
    assert Bundle.load(f"{ADDRESS}@{first}").digest == before.digest
    assert len(server.asked) == asked  # a commit never changes


def test_offline_the_last_that_was_fetched_is_taken(server, capsys):
    server.put("me/tiny", content())
    Bundle.load(ADDRESS)
    server.close()
    capsys.readouterr()
    assert Bundle.load(ADDRESS).digest == Bundle.load(NAME).digest
    assert capsys.readouterr().err.count("hf://me/tiny: the Hub can't be reached; commit ") == 1
    with pytest.raises(UserError, match=r"^hf://me/other can't be fetched \(.*\); on a machine without"):
        Bundle.load("hf://me/other")
    with pytest.raises(UserError, match=r"^hf://me/tiny@v2 can't be fetched"):
        Bundle.load(f"{ADDRESS}@v2")


def test_offline_by_the_environment_asks_nobody(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        Bundle.load(ADDRESS)
    assert server.asked == []


def test_another_process_was_quicker(server, monkeypatch):
    commit = server.put("me/tiny", content())
    own = files.cache_root() / "hub" / "me" / "tiny" / commit
    rename = Path.rename

    def late(self, target):
        if Path(target) == own:
            own.mkdir(parents=True)
            for name, data in content().items():
                (own / name).write_bytes(data)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert Bundle.load(ADDRESS).digest == Bundle.load(NAME).digest
    assert [p for p in kept() if ".tmp." in p] == []


# ---- private -------------------------------------------------------------------------------------------------------


def test_a_private_one_takes_a_token_which_goes_nowhere_else(server, serve, tmp_path, monkeypatch):
    server.put("me/tiny", content(), private=True)
    with pytest.raises(UserError, match=r"^hf://me/tiny: no such bundle on the Hub, or a private one"):
        Bundle.load(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "secret\n")
    (tmp_path / "store").mkdir()
    for name, data in content().items():
        (tmp_path / "store" / name).write_bytes(data)
    store = serve(tmp_path / "store")  # where the Hub keeps large files
    seen = []
    handler = store.http.RequestHandlerClass
    original = handler.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: (seen.append(self.headers["Authorization"]), original(self)))
    server.redirect = store.url
    assert Bundle.load(ADDRESS).digest == Bundle.load(NAME).digest
    assert seen == [None, None]


def test_a_mirror_is_given_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub._token(hub._url("me/x")) == "secret"
    monkeypatch.setenv("MOBILENETS_MIRROR", "http://mirror")
    assert hub._url("me/x") == "http://mirror/huggingface.co/me/x"
    assert hub._token(hub._url("me/x")) == ""


# ---- never trusted -------------------------------------------------------------------------------------------------


def hostile(change):
    """The files, one of them changed."""
    found = content()
    card = json.loads(found[hub.CARD])
    weights = found[hub.WEIGHTS]
    if change == "weights":
        weights = weights[:-1] + bytes([weights[-1] ^ 1])
    elif change == "long":
        weights += b"x" * 10_000_000
    elif change == "card":
        card["labels"] = ["a"]
    elif change == "huge":
        card["arch"]["rows"] = card["arch"]["rows"] * 100
    found[hub.WEIGHTS] = weights
    found[hub.CARD] = {"html": b"<html>", "empty": b"", "nul": b"\0" * 100}.get(change, json.dumps(card).encode())
    if change == "no weights":
        del found[hub.WEIGHTS]
    return found


@pytest.mark.sampled(4)
@pytest.mark.parametrize("change", ["weights", "long", "card", "huge", "html", "empty", "nul", "no weights"])
def test_what_is_no_sound_bundle_is_one_line_and_not_kept(server, command, change):
    server.put("me/tiny", hostile(change))
    ran = command("show", ADDRESS)
    assert ran.code == 2
    (line,) = [x for x in ran.err.splitlines() if not x.startswith("fetching ")]
    assert line.startswith("mobilenets: ")
    assert "hf://me/tiny" in line or server.url in line
    assert ".tmp." not in line
    assert kept() == []


def test_a_card_cannot_ask_for_more_than_is_bounded(server, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS_MOST", 1000)
    server.put("me/tiny", content())
    with pytest.raises(UserError, match="more than the 1000 bytes"):
        Bundle.load(ADDRESS)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("sha", ["main", "../" * 14, 7, None, "g" * 40])
def test_a_commit_that_is_none(monkeypatch, sha):
    monkeypatch.setattr(web, "read", lambda *_: json.dumps({"sha": sha}).encode())
    with pytest.raises(UserError, match="can't be understood"):
        Bundle.load(ADDRESS)
    assert kept() == []


def test_a_reference_that_was_altered_is_not_followed(server):
    server.put("me/tiny", content())
    Bundle.load(ADDRESS)
    (ref,) = (files.cache_root() / "hub" / "me" / "tiny" / "refs").iterdir()
    ref.write_bytes(b"../../../../x\xff")
    assert np.isfinite(Bundle.load(ADDRESS).tensors["classifier.weight"]).all()
    assert (ref.parents[1] / ref.read_text()).is_dir()
