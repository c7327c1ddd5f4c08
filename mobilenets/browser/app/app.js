/**
 * The page: what people do, what they see.
 *
 * @import {Picture} from "./engine/pictures.js"
 * @import {Answer} from "./answers.js"
 * @import {Seen, Source} from "./worker.js"
 * @import {Remembered} from "./rows.js"
 * @typedef {Source & {name: string, title: string, task: string, precision: string, bytes: number}} Listed
 */

import { Camera } from "./camera.js";
import { Drawing } from "./drawing.js";
import { Network } from "./network.js";
import { facts } from "./facts.js";
import { kept } from "./offline.js";
import { seen } from "./placement.js";
import { Rows, words } from "./rows.js";

const SLOW = 0.9; // of a number that is shown, how much stays when another frame comes
const KEPT_AFTER_MS = 2000; // what is kept is fetched once more: not while people wait for a first answer
const READ_MS = 100; // that words of a live picture stay: nobody reads sixty in a second
const SPOKEN_MS = 1500; // at the least between two answers of a camera that are read out

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function part(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`no ${id}`);
  return found;
}

const stage = part("stage", HTMLElement);
const video = part("video", HTMLVideoElement);
const photo = part("photo", HTMLImageElement);
const world = part("world", HTMLCanvasElement);
const speed = part("speed", HTMLElement);
const problem = part("problem", HTMLElement);
const headline = part("headline", HTMLElement);
const below = part("below", HTMLElement);
const said = part("said", HTMLElement);
const file = part("file", HTMLInputElement);
const networks = part("networks", HTMLSelectElement);
const buttons = {
  camera: part("camera", HTMLButtonElement),
  choose: part("choose", HTMLButtonElement),
  turn: part("turn", HTMLButtonElement),
  look: part("look", HTMLButtonElement),
  remember: part("remember", HTMLButtonElement),
  install: part("install", HTMLButtonElement),
};

const camera = new Camera(video);
const drawing = new Drawing(part("overlay", HTMLCanvasElement));
const rows = new Rows(part("rows", HTMLElement));

/** @type {Network} */
let network;
/** @type {Blob | null} */
let shown = null;
/** @type {Answer | null} */
let answer = null;
/** @type {Remembered[]} */
let remembered = [];
let looking = false;
let session = 0; // of live pictures: an older one's answers are dropped
let uses = 0; // of networks, likewise
let spoken = 0;
let toldAt = 0;

/** @param {unknown} e */
function complain(e) {
  problem.textContent = e instanceof Error ? e.message : String(e);
}

/**
 * Runs what a person asked for; what goes wrong is said.
 * @param {() => unknown} action
 */
async function attempt(action) {
  problem.textContent = "";
  try {
    await action();
  } catch (e) {
    complain(e);
  }
}

// ---- what is seen

/**
 * @param {Seen} found
 * @param {number} width
 * @param {number} height
 */
function show(found, width, height) {
  answer = found.answer;
  const part = seen(network.card.preprocess, width, height);
  drawing.draw(width, height, part, found.look, answer.kind === "boxes" ? answer.boxes : null);
  if (camera.running && performance.now() - toldAt < READ_MS) return;
  if (answer.kind === "place") {
    const { guesses } = answer;
    import("./world.js").then(({ map }) => map(world, guesses)).catch(complain);
  }
  tell();
}

/** The answer in words. */
function tell() {
  if (!answer) return;
  const { headline: head, below: line, lines } = words(answer, remembered);
  headline.textContent = head;
  below.textContent = line;
  rows.show(lines);
  const now = (toldAt = performance.now());
  if (said.textContent !== head && (!camera.running || now - spoken > SPOKEN_MS)) {
    said.textContent = head;
    spoken = now;
  }
}

/** @param {Blob} blob */
async function showPhoto(blob) {
  stop();
  if (blob.type && !blob.type.startsWith("image/")) throw new Error("That is not a picture.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("That picture can't be read here: it is damaged, or of a kind that this browser doesn't know.");
  }
  shown = blob;
  if (photo.src) URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(blob);
  const { width, height } = bitmap;
  present(photo, width, height);
  drawing.mirrored = false;
  drawing.clear(width, height);
  const found = await network.photo(bitmap, looking);
  if (shown !== blob) return; // another came meanwhile
  spoken = 0;
  show(found, width, height);
  speed.textContent = `${found.ms.toFixed(1)} ms`;
  speed.hidden = false;
}

/**
 * @param {HTMLElement} what
 * @param {number} width
 * @param {number} height
 */
function present(what, width, height) {
  stage.classList.remove("empty");
  stage.style.aspectRatio = `${width} / ${height}`;
  video.hidden = what !== video;
  photo.hidden = what !== photo;
}

// ---- the camera

function stop() {
  session++;
  if (!camera.running) return;
  camera.stop();
  buttons.camera.textContent = "Camera";
  buttons.turn.hidden = video.hidden = speed.hidden = true;
  stage.classList.add("empty");
  drawing.clear(1, 1);
}

/** @param {boolean} other */
async function start(other) {
  stop();
  shown = null;
  await camera.start(other);
  present(video, video.videoWidth, video.videoHeight);
  buttons.camera.textContent = "Stop";
  buttons.turn.hidden = !(await camera.several());
  drawing.mirrored = camera.mirrored;
  video.classList.toggle("mirrored", camera.mirrored);
  live(session).catch(complain);
}

/**
 * Frame after frame, as fast as the camera or the network is.
 * @param {number} mine
 */
async function live(mine) {
  let [every, busy, running] = [0, 0, 0]; // ms
  let before = performance.now();
  for (let n = 0; mine === session; n++) {
    await camera.next();
    if (mine !== session) return;
    const since = performance.now();
    const { picture, width, height } = camera.frame(network.card.preprocess);
    const found = await network.frame(picture, width, height, looking);
    if (mine !== session) return;
    show(found, width, height);
    const now = performance.now();
    const slow = n < 10 ? n / (n + 1) : SLOW;
    every = slow * every + (1 - slow) * (now - before);
    busy = slow * busy + (1 - slow) * (now - since);
    running = slow * running + (1 - slow) * found.ms;
    before = now;
    if (n % 8 === 0) {
      speed.textContent = `${Math.round(1000 / every)} fps, ${busy.toFixed(1)} ms each, network ${running.toFixed(1)} ms`;
      speed.hidden = false;
    }
  }
}

// ---- what people do

buttons.camera.onclick = () =>
  attempt(() => {
    if (!camera.running) return start(false);
    stop();
  });
buttons.turn.onclick = () => attempt(() => start(true));
buttons.choose.onclick = () => file.click();
buttons.look.onclick = () =>
  attempt(() => {
    looking = !looking;
    buttons.look.setAttribute("aria-pressed", String(looking));
    return shown && showPhoto(shown);
  });
buttons.remember.onclick = () => {
  if (answer?.kind !== "vector") return;
  remembered.push({ name: `picture ${remembered.length + 1}`, vector: answer.vector });
  tell();
};
file.onchange = () => {
  const [chosen] = file.files ?? [];
  if (chosen) attempt(() => showPhoto(chosen));
  file.value = ""; // the same one may be chosen again
};

/** @param {DataTransfer | null} data */
function pictureOf(data) {
  return [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/")) ?? data?.files[0];
}

/** @param {DataTransfer | null} data */
function given(data) {
  const picture = pictureOf(data);
  if (network) attempt(() => (picture ? showPhoto(picture) : complain("There is no picture in that.")));
}

document.onpaste = (event) => given(event.clipboardData);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  given(event.dataTransfer);
};

addEventListener("beforeinstallprompt", (event) => {
  event.preventDefault();
  buttons.install.hidden = false;
  buttons.install.onclick = () => {
    buttons.install.hidden = true;
    /** @type {any} */ (event).prompt();
  };
});

// ---- the beginning

/** @param {Listed} listed */
async function use(listed) {
  stop();
  for (const button of [buttons.camera, buttons.choose]) button.disabled = true;
  const summary = part("network", HTMLElement);
  summary.textContent = "Loading…";
  network?.close();
  const mine = ++uses;
  const made = await Network.open(listed);
  if (mine !== uses) return made.close(); // another was chosen meanwhile
  network = made;
  remembered = [];
  answer = null;
  part("name", HTMLElement).textContent = document.title = listed.name;
  summary.textContent = `${listed.title}, ${listed.precision}, ${(listed.bytes / 1e6).toFixed(2)} MB`;
  facts(part("facts", HTMLElement), network, listed);
  buttons.look.hidden = !listed.looks;
  buttons.remember.hidden = !["embed", "features"].includes(listed.task);
  world.hidden = listed.task !== "geolocate";
  for (const button of [buttons.camera, buttons.choose]) button.disabled = false;
  if (shown) await showPhoto(shown);
  const { fetched } = network;
  setTimeout(() => keep(fetched), KEPT_AFTER_MS);
}

/**
 * For use without a network.
 * @param {string[]} files
 */
function keep(files) {
  kept(files).then(
    (whole) => (part("offline", HTMLElement).textContent = whole ? " It works offline." : ""),
    () => undefined, // private windows keep nothing
  );
}

await attempt(async () => {
  /** @type {{networks: Listed[]}} */
  const { networks: listed } = await (await fetch("app.json")).json();
  part("choice", HTMLElement).hidden = listed.length < 2;
  part("name", HTMLElement).classList.toggle("unseen", listed.length > 1);
  networks.replaceChildren(...listed.map(({ name }, i) => new Option(name, String(i))));
  networks.onchange = () => attempt(() => use(listed[Number(networks.value)]));
  await use(listed[0]);
});
