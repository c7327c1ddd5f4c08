"""The page of `mobilenets app` in Chromium: what it shows is what `predict` says, and nothing leaves it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import numpy.typing as npt
import pytest
from browsing import DESKTOP, PHONE, Visit
from PIL import Image
from small import smooth_images

import mobilenets
from mobilenets import tasks
from mobilenets.arch import zoo
from mobilenets.arch.graph import Head
from mobilenets.arch.heads import tag_head
from mobilenets.arch.spec import scale
from mobilenets.deploy import app, device, engines
from mobilenets.deploy.engines import native_library
from mobilenets.model.card import Card, classifier_card
from mobilenets.model.images import Preprocess
from mobilenets.model.trust import Trust
from mobilenets.tasks.detect.detector import TASK as DETECT
from mobilenets.tasks.embed.task import TASK as EMBED
from mobilenets.tasks.geolocate import cells
from mobilenets.tasks.geolocate.task import TASK as GEOLOCATE
from mobilenets.tasks.looking import activation

PACKAGED = "cifar10-v1-0.25"
READY = "#camera:enabled"


@dataclasses.dataclass(frozen=True)
class Home:
    """A site in a subfolder, three pictures, and a browser whose camera shows the first of them."""

    folder: Path
    address: str
    pictures: tuple[Path, ...]
    browser: Any


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    browsing.chromium()
    root = tmp_path_factory.mktemp("page")
    app.site([PACKAGED, "cifar10-v2-0.25"], root / "deep" / "site")
    model, pictures = mobilenets.load(known(PACKAGED, root / "deep" / "site")), []
    images = [Image.fromarray(pixels).resize((320, 240)) for pixels in smooth_images(60, 48, seed=8)]
    surest = sorted(images, key=lambda image: -model.predict(image).top[0][1])
    for i, image in enumerate(surest[:3]):
        pictures.append(root / f"{i}.png")
        image.save(pictures[-1])
    camera = browsing.write_video(root / "camera.y4m", [Image.open(pictures[0])] * 2)
    with browsing.served(root) as address, browsing.browser(camera) as browser:
        yield Home(root / "deep" / "site", f"{address}/deep/site/", tuple(pictures), browser)


@pytest.fixture(scope="module")
def visited(home: Home) -> Iterator[Visit]:
    with browsing.visit(home.browser, PHONE) as visit:
        visit.page.set_default_timeout(10_000)
        visit.page.goto(home.address)
        visit.page.wait_for_selector(READY)
        yield visit


@pytest.fixture
def opened(home: Home, visited: Visit) -> Iterator[Visit]:
    """The page, ready, as the test before left it; at the end, nothing went wrong in it and nothing left it."""
    yield visited
    assert visited.wrong == []
    assert visited.elsewhere(home.address) == []
    assert visited.page.inner_text("#problem") == ""


def known(name: str, site: Path) -> Path:
    """What `predict` runs: the site's own file, or the packaged bundle where there is no native engine."""
    return site / "models" / f"{name}.mnet" if native_library.built() else Path(name)


def said(home: Home, picture: Path, name: str = PACKAGED) -> list[tuple[str, str]]:
    """What `predict` says of a picture, as the page writes it."""
    model = mobilenets.load(known(name, home.folder))
    return [(label, f"{100 * p:.1f}%") for label, p in model.predict(picture).top]


def shown(page: Any) -> list[tuple[str, str]]:
    rows = page.query_selector_all("#rows li")
    return [(r.query_selector(".label").inner_text(), r.query_selector(".value").inner_text()) for r in rows]


def wait_for(home: Home, page: Any, picture: Path) -> None:
    """Until the page shows what `predict` says of a picture: the test's time runs out if it never does."""
    (label, share), *_ = said(home, picture)
    same = "told => document.querySelector('#rows li')?.innerText.split(/\\s*\\n\\s*/).slice(0, 2).join() === told"
    page.wait_for_function(same, arg=f"{label},{share}")
    assert page.inner_text("#headline") == label


def file_event(page: Any, path: Path, code: str) -> None:
    """An event that brings a file, made in the page: `code` has it as `data`, a DataTransfer."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """([content, name, code]) => {
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name, {type: "image/png"}));
          new Function("data", code)(data);
        }""",
        [content, path.name, code],
    )


def test_photos_are_chosen_dropped_and_pasted(home: Home, opened: Visit) -> None:
    page, (first, second, third) = opened.page, home.pictures
    page.set_input_files("#file", str(first))
    wait_for(home, page, first)
    assert shown(page) == said(home, first)
    file_event(page, second, "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}))")
    wait_for(home, page, second)
    file_event(page, third, "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))")
    wait_for(home, page, third)
    assert page.inner_text("#said") == said(home, third)[0][0]  # read out
    for i, name in ((1, "cifar10-v2-0.25"), (0, PACKAGED)):  # with the picture that is shown
        page.select_option("#networks", str(i))
        label = said(home, third, name)[0][0]
        page.wait_for_function("label => document.querySelector('#headline').innerText === label", arg=label)


def test_the_camera(home: Home, opened: Visit) -> None:
    page = opened.page
    page.click("#camera")
    label = said(home, home.pictures[0])[0][0]
    page.wait_for_function("label => document.querySelector('#headline').innerText === label", arg=label)
    page.wait_for_selector("#speed:has-text(' fps, ')", state="visible")
    assert page.inner_text("#camera") == "Stop"
    page.click("#look")
    page.wait_for_function("() => document.querySelector('#look').getAttribute('aria-pressed') === 'true'")
    page.click("#look")
    page.select_option("#networks", "1")  # it stops for another network
    page.wait_for_selector(".invitation", state="visible")
    page.select_option("#networks", "0")
    page.wait_for_selector(READY)
    page.click("#camera")
    page.wait_for_selector("#speed:has-text(' fps, ')", state="visible")
    page.click("#camera")
    assert page.evaluate("document.querySelector('#video').srcObject") is None
    assert page.is_visible(".invitation")


def test_what_is_no_picture_is_said(home: Home, opened: Visit, tmp_path: Path) -> None:
    page = opened.page
    (tmp_path / "text.txt").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "text.txt"))
    page.wait_for_function("() => document.querySelector('#problem').innerText === 'That is not a picture.'")
    (tmp_path / "cut.png").write_bytes(home.pictures[0].read_bytes()[:200])
    page.set_input_files("#file", str(tmp_path / "cut.png"))
    page.wait_for_function("() => document.querySelector('#problem').innerText.includes('damaged')")
    page.set_input_files("#file", str(home.pictures[0]))
    wait_for(home, page, home.pictures[0])


def test_it_works_offline_and_from_a_subfolder(home: Home) -> None:
    with browsing.visit(home.browser, PHONE) as visit:
        page = visit.page
        page.goto(home.address)
        page.wait_for_function("() => document.querySelector('#offline').innerText.includes('offline')")
        page.context.set_offline(True)
        page.reload()
        page.wait_for_selector(READY)
        page.set_input_files("#file", str(home.pictures[0]))
        wait_for(home, page, home.pictures[0])
        assert visit.wrong == []


def test_its_policy_lets_nothing_out(home: Home) -> None:
    came: list[str] = []
    with browsing.served(home.folder, came) as other, browsing.visit(home.browser) as visit:
        page = visit.page
        page.goto(home.address)
        tried = """async (other) => {
          const made = [fetch(other).then(() => "fetch", () => "")];
          made.push(import(`${other}/app.js`).then(() => "import", () => ""));
          const image = new Image();
          image.src = `${other}/icon.svg`;
          made.push(image.decode().then(() => "image", () => ""));
          made.push(Promise.resolve(navigator.sendBeacon(other, "x") && ""));
          const socket = new Promise((done) => {
            try {
              const s = new WebSocket(other.replace("http", "ws"));
              [s.onopen, s.onerror] = [() => done("socket"), () => done("")];
            } catch { done(""); }
          });
          return (await Promise.all([...made, socket])).filter(Boolean);
        }"""
        assert page.evaluate(tried, other) == []
        assert came == []


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_everyone_can_use_it(home: Home, size: tuple[int, int], scheme: str) -> None:
    axe = browsing.node_module("axe-core/axe.min.js").read_text()
    with browsing.visit(home.browser, size, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce") as visit:
        page = visit.page
        page.goto(home.address)
        page.wait_for_selector(READY)
        page.evaluate(axe)
        run = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
          (v) => `${v.id}: ${v.nodes.map((n) => n.html)}`)"""
        assert page.evaluate(run) == []
        page.set_input_files("#file", str(home.pictures[0]))
        wait_for(home, page, home.pictures[0])
        page.click("summary")
        assert page.evaluate(run) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]  # nothing lies beside the screen


def test_by_the_keyboard_alone(opened: Visit) -> None:
    page = opened.page
    page.reload()
    page.wait_for_selector(READY)
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
    assert names[1:5] == ["Camera", "Photo", "Where it looks", "About this network"]
    page.focus("#look")
    page.keyboard.press("Enter")
    assert page.get_attribute("#look", "aria-pressed") == "true"
    page.keyboard.press("Space")
    assert page.get_attribute("#look", "aria-pressed") == "false"
    page.focus("summary")
    page.keyboard.press("Space")
    page.wait_for_selector("#facts dt")
    assert "CIFAR" in page.inner_text("#facts").upper()


def test_where_it_looks(home: Home, opened: Visit) -> None:
    """The map that the page draws is the classifier's weights over the last map."""
    (network, _) = json.loads((home.folder / "app.json").read_text())["networks"]
    path = home.folder / network["file"]
    engine = engines.load(path)
    outputs = engine(engine.card.preprocess.read(home.pictures[0])[None])
    kept, best = outputs[app.MAP][0], int(outputs["probabilities"].argmax())
    weights = mobilenets.Bundle.load(PACKAGED).tensors["classifier.weight"].reshape(10, -1)
    want = activation(kept, weights[best])
    got = opened.page.evaluate(
        """async ([file, looks, map, height, width, best]) => {
          const { look } = await import("./look.js");
          const bytes = new Uint8Array(await (await fetch(file)).arrayBuffer());
          return [...look(bytes, looks, Float32Array.from(map), width, height, best).values];
        }""",
        [network["file"], network["looks"], kept.ravel().tolist(), *kept.shape[1:], best],
    )
    assert got == pytest.approx(want.ravel().tolist(), abs=1e-5)
    page = opened.page
    page.click("#look")
    page.set_input_files("#file", str(home.pictures[0]))
    wait_for(home, page, home.pictures[0])
    shaded = """() => {
      const c = document.querySelector("#overlay");
      const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      let n = 0;
      for (let i = 0; i < d.length; i += 4) n += d[i] < 9 && d[i + 3] > 99;
      return n;
    }"""
    assert 0.3 < page.evaluate(shaded) / (320 * 240) < 0.99


# ---- each task's answers, from the same card and outputs


def _card(task: Any, config: dict[str, Any], head: Head, arch: Any, **how: Any) -> Card:
    return Card(arch, Preprocess(arch.resolution, **how), head, task=task.name, config=config)


def classifier() -> Card:
    arch = scale(zoo.network("v1"), 0.25, 32, 7)
    card = classifier_card(arch, Preprocess(32), [f"label {i}" for i in range(7)])
    return card.trusted(Trust(reject_below=0.99))


def tagger() -> Card:
    arch = scale(zoo.network("v1"), 0.25, 32, 3)
    config = {"labels": ["a", "b", "c"]}
    card = _card(tasks.find("attributes"), config, tag_head(arch), arch)
    return card.trusted(Trust(thresholds=(0.2, 0.9, 0.5)))


def locator() -> Card:
    at = np.random.default_rng(1).normal(0, 1, (900, 2)) * (30, 80)
    at = np.clip(at, (-85, -179), (85, 179))
    parts = [cells.partition(at, most, 1).to_json() for most in (12, 60, 300)]
    config = {"partitions": parts, "soft_cells_km": 0.0, "floors": {}}
    arch = GEOLOCATE.arch(scale(zoo.network("v1"), 0.25, 32, 0), config)
    return _card(GEOLOCATE, config, GEOLOCATE.head(arch, config), arch)


def embedder() -> Card:
    arch, config = scale(zoo.network("v1"), 0.25, 32, 0), {"dim": 8, "head": "pool"}
    return _card(EMBED, config, EMBED.head(arch, config), arch)


CARDS: dict[str, Callable[[], Card]] = {
    "classify": classifier, "attributes": tagger, "geolocate": locator, "embed": embedder,
}  # fmt: skip


def answered(page: Any, card: Card, outputs: dict[str, npt.NDArray[np.float32]], size: tuple[int, int]) -> Any:
    """What the page's own decoding makes of the outputs of one image."""
    values = {name: x[0].ravel().astype(float).tolist() for name, x in outputs.items()}
    return page.evaluate(
        """async ([outputs, card, width, height]) => {
          const { answer } = await import("./answers.js");
          for (const name of Object.keys(outputs)) outputs[name] = Float32Array.from(outputs[name]);
          const made = answer(outputs, card, width, height);
          if (made.vector) made.vector = [...made.vector];
          return made;
        }""",
        [values, card.to_json(), *size],
    )


@pytest.mark.parametrize("name", CARDS)
def test_answers_are_the_tasks_own(name: str, opened: Visit) -> None:
    card, rng = CARDS[name](), np.random.default_rng(3)
    outputs = {n: rng.random((1, *shape), np.float32) for n, shape in card.outputs.items()}
    outputs = {n: x if name in ("attributes", "embed") else x / x.sum() for n, x in outputs.items()}
    (want,) = tasks.of(card).decode(outputs, card, [(320, 240)], 5)
    told, got = want.to_json(), answered(opened.page, card, outputs, (320, 240))
    match name:
        case "classify":
            assert [(r["label"], pytest.approx(r["probability"], abs=1e-6)) for r in got["rows"]] == [
                (t["label"], t["probability"]) for t in told["top"]
            ]
            assert got["unsure"]
        case "attributes":
            assert {r["label"] for r in got["rows"] if r["holds"]} == {t.label for t in want.holding}
        case "geolocate":
            assert [(g["latitude"], g["longitude"]) for g in got["guesses"]] == [
                pytest.approx((g.latitude, g.longitude)) for g in want.guesses
            ]
            assert [g["probability"] for g in got["guesses"]] == pytest.approx([g.probability for g in want.guesses])
        case _:
            vector = outputs["vector"][0] / np.linalg.norm(outputs["vector"])
            assert got["vector"] == pytest.approx(vector.tolist(), abs=1e-6)


@pytest.mark.parametrize("framing", ["stretch", "letterbox", "crop"])
def test_boxes_lie_where_predict_has_them(framing: Any, opened: Visit) -> None:
    known = DETECT.variants(3)[0].random(DETECT.variants(3)[0].networks(224)[0], "float32").card
    card = known.replace(preprocess=dataclasses.replace(known.preprocess, framing=framing, crop=0.8))
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((1, 9, 2, 2), np.float32), axis=2).reshape(1, 9, 4)
    outputs = {
        "boxes": corners, "scores": np.sort(rng.random((1, 9), np.float32))[:, ::-1],
        "classes": rng.integers(0, 3, (1, 9)).astype(np.float32), "count": np.array([[7]], np.float32),
    }  # fmt: skip
    (want,) = tasks.of(card).decode({k: v if k != "count" else v[0] for k, v in outputs.items()}, card, [(500, 300)], 5)
    got = answered(opened.page, card, outputs, (500, 300))["boxes"]
    told = want.to_json()["boxes"]
    assert 0 < len(told) < 8
    assert [(b["label"], pytest.approx(b["score"], abs=1e-6)) for b in got] == [(b["label"], b["score"]) for b in told]
    assert [b["box"] for b in got] == [pytest.approx(b["box"], abs=0.02) for b in told]


@pytest.mark.slow
def test_types(home: Home) -> None:
    """Of all modules of the site, by TypeScript."""
    import subprocess

    program = browsing.node_module("typescript/bin/tsc")
    (home.folder / "other.js").write_bytes((app.BROWSER / app.ORT_WEB / "engine.js").read_bytes())
    modules = [str(p) for p in home.folder.glob("*.js") if p.name != "files.js"]
    options = "--allowJs --checkJs --strict --noEmit --target es2022 --module es2022 --lib es2022,dom,dom.iterable"
    for name in device.PAGE:
        (home.folder / name.replace("index", "measure")).write_bytes((app.BROWSER / "measure" / name).read_bytes())
    modules += [str(home.folder / name) for name in device.PAGE if name.endswith(".js")]
    ran = subprocess.run(
        ["node", str(program), *options.split(), *modules], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.slow
def test_labels_are_those_of_predict_on_a_hundred_pictures(home: Home, opened: Visit, tmp_path: Path) -> None:
    rng, page, model = np.random.default_rng(5), opened.page, mobilenets.load(known(PACKAGED, home.folder))
    before = ""
    for i in range(100):
        width, height = rng.integers(40, 700, 2).tolist()
        pixels = Image.fromarray(smooth_images(1, 64, seed=i)[0]).resize((width, height))
        path = tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}"
        pixels.save(path)
        page.set_input_files("#file", str(path))
        best = model.predict(path).top
        changed = "before => document.querySelector('#photo').src !== before && document.querySelector('#rows li')"
        page.wait_for_function(changed, arg=before)
        before = page.get_attribute("#photo", "src")
        near = best[0][1] - best[1][1] < 0.02
        if not near:
            page.wait_for_function("l => document.querySelector('#headline').innerText === l", arg=best[0][0])
