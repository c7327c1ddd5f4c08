/**
 * Runs a network away from the page, which stays quick.
 *
 * @import {Card} from "./engine/mnet.js"
 * @import {Picture} from "./engine/pictures.js"
 * @import {Running} from "./engine.js"
 * @import {Answer} from "./answers.js"
 * @import {Look, Looks} from "./look.js"
 * @typedef {{file: string, looks: Looks | null}} Source
 * @typedef {{card: Card, engine: string, fetched: string[]}} Opened
 * @typedef {{answer: Answer, look: Look | null, ms: number}} Seen  ms: what the network took
 * @typedef {{picture: Picture, width: number, height: number}} Frame
 *     picture: in the network's own size already; width, height: of the camera's
 * @typedef {{open: Source} | {photo: ImageBitmap, look: boolean} | {frame: Frame, look: boolean}} Request
 */

import { answer } from "./answers.js";
import { open } from "./engine.js";
import { fit, picture } from "./engine/pictures.js";
import { look } from "./look.js";
import { inputSize } from "./placement.js";

const MAP = "last_map";

/** @type {{running: Running, file: Uint8Array, looks: Looks | null}} */
let network;

/**
 * @param {string} file
 * @returns {Promise<Uint8Array>}
 */
async function content(file) {
  const answer = await fetch(new URL(file, import.meta.url));
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/**
 * @param {Source} source
 * @returns {Promise<Opened>}
 */
async function opened({ file, looks }) {
  const bytes = content(file);
  const running = await open(bytes, new URL(file, import.meta.url).href);
  network = { running, file: await bytes, looks };
  const { card, name, fetched } = running;
  const [rows, columns] = inputSize(card.preprocess);
  await running.run(new Uint8Array(rows * columns * 3)); // the first run takes longer
  return { card, engine: name, fetched };
}

/**
 * @param {Uint8Array} pixels
 * @param {number} width  of the image, as it was
 * @param {number} height
 * @param {boolean} looking
 * @returns {Promise<Seen>}
 */
async function seen(pixels, width, height, looking) {
  const { running, file, looks } = network;
  const since = performance.now();
  const outputs = await running.run(pixels);
  const ms = performance.now() - since;
  const said = answer(outputs, running.card, width, height);
  const shown = looking && looks && said.kind === "labels";
  const [, high, wide] = running.shapes[MAP] ?? [];
  return { answer: said, look: shown ? look(file, looks, outputs[MAP], wide, high, said.best) : null, ms };
}

/**
 * RGB of RGBA.
 * @param {Picture} frame
 */
function rgb({ data }) {
  const out = new Uint8Array((data.length / 4) * 3);
  for (let i = 0, o = 0; i < data.length; i += 4) {
    out[o++] = data[i];
    out[o++] = data[i + 1];
    out[o++] = data[i + 2];
  }
  return out;
}

/**
 * @param {Request} request
 * @returns {Promise<Opened | Seen>}
 */
async function answered(request) {
  if ("open" in request) return opened(request.open);
  if ("frame" in request) {
    const { picture: small, width, height } = request.frame;
    return seen(rgb(small), width, height, request.look);
  }
  const { photo } = request;
  const pixels = fit(await picture(photo), network.running.card.preprocess);
  return seen(pixels, photo.width, photo.height, request.look);
}

let turn = Promise.resolve();
onmessage = ({ data: [id, request] }) => {
  turn = turn.then(() =>
    answered(request).then(
      (said) => postMessage([id, said, ""]),
      (e) => postMessage([id, null, e instanceof Error ? e.message : String(e)]),
    ),
  );
};
