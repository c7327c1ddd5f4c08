/**
 * A network's outputs as answers, by its task: what `mobilenets.tasks` decode, from the same card.
 *
 * @import {Card, Outputs} from "./engine/mnet.js"
 * @typedef {{label: string, probability: number, holds: boolean}} Row
 * @typedef {{label: string, score: number, index: number, box: [number, number, number, number]}} Found
 *     box: left, top, right, bottom in pixels of the image
 * @typedef {{latitude: number, longitude: number, probability: number}} Guess
 * @typedef {{kind: "labels", rows: Row[], unsure: boolean, best: number}} Labels  best: of all labels, by its place
 * @typedef {{kind: "tags", rows: Row[]}} Tags
 * @typedef {{kind: "boxes", boxes: Found[]}} Boxes
 * @typedef {{kind: "place", guesses: Guess[]}} Place
 * @typedef {{kind: "vector", vector: Float32Array}} Vector
 * @typedef {Labels | Tags | Boxes | Place | Vector} Answer
 */

import { inputSize, place } from "./placement.js";

const TOP = 5;
const HALF = 0.5; // from which a tag holds, where nobody found a better threshold
const LEAST = 0.3; // score from which a box is shown

/** @type {Record<string, (outputs: Outputs, card: any, width: number, height: number) => Answer>} */
const TASKS = { classify: labels, attributes: tags, detect: boxes, geolocate: places, embed: vector, features: vector };

/**
 * What the outputs of one image say; its own size is in pixels.
 *
 * @param {Outputs} outputs
 * @param {Card} card
 * @param {number} width
 * @param {number} height
 * @returns {Answer}
 */
export function answer(outputs, card, width, height) {
  const decode = TASKS[card.task];
  if (!decode) throw new Error(`this page has no answers for the task ${card.task}`);
  return decode(outputs, card, width, height);
}

/**
 * Places of the largest values, the largest first, of equal ones the first: quicker than sorting all of a thousand.
 * @param {Float32Array | Float64Array} values
 * @param {number} count
 */
function largest(values, count) {
  /** @type {number[]} */
  const found = [];
  for (let i = 0; i < values.length; i++) {
    if (found.length === count && values[i] <= values[found[count - 1]]) continue;
    let at = found.length;
    while (at > 0 && values[found[at - 1]] < values[i]) at--;
    found.splice(at, 0, i);
    if (found.length > count) found.pop();
  }
  return found;
}

/** @param {Outputs} outputs @param {any} card @returns {Labels} */
function labels({ probabilities }, card) {
  const order = largest(probabilities, TOP);
  const least = card.config.trust?.reject_below ?? 0;
  const rows = order.map((i) => ({ label: card.config.labels[i], probability: probabilities[i], holds: true }));
  return { kind: "labels", rows, unsure: rows[0].probability < least, best: order[0] };
}

/** @param {Outputs} outputs @param {any} card @returns {Tags} */
function tags({ probabilities }, card) {
  const thresholds = card.config.trust?.thresholds ?? [];
  const rows = largest(probabilities, probabilities.length).map((i) => ({
    label: card.config.labels[i],
    probability: probabilities[i],
    holds: probabilities[i] >= (thresholds[i] ?? HALF),
  }));
  return { kind: "tags", rows: rows.sort((a, b) => Number(b.holds) - Number(a.holds)) };
}

/** @param {Outputs} outputs @param {any} card @param {number} width @param {number} height @returns {Boxes} */
function boxes(outputs, card, width, height) {
  if (!outputs.boxes) throw new Error("this detector's file gives no boxes: export it without --raw");
  const [rows, columns] = inputSize(card.preprocess);
  const { scaleX, scaleY, left, top } = place(card.preprocess, width, height);
  const least = card.config.trust?.reject_below ?? LEAST;
  /** @type {(v: number, most: number) => number} */
  const cut = (v, most) => Math.min(most, Math.max(0, v));
  const found = [];
  for (let i = 0; i < Math.round(outputs.count[0]); i++) {
    const [x1, y1, x2, y2] = outputs.boxes.subarray(4 * i, 4 * i + 4);
    const index = Math.round(outputs.classes[i]);
    const label = card.config.labels[index] ?? `class ${index}`;
    if (outputs.scores[i] < least) continue;
    const across = [x1, x2].map((x) => cut((x * columns - left) / scaleX, width));
    const down = [y1, y2].map((y) => cut((y * rows - top) / scaleY, height));
    /** @type {Found["box"]} */
    const box = [across[0], down[0], across[1], down[1]];
    found.push({ label, score: outputs.scores[i], index, box });
  }
  return { kind: "boxes", boxes: found };
}

/** @param {Outputs} outputs @param {any} card @returns {Place} */
function places(outputs, card) {
  const [fine, ...coarser] = card.config.partitions;
  const scores = Float64Array.from(outputs.probabilities);
  coarser.forEach((/** @type {any} */ part, /** @type {number} */ i) => {
    const said = outputs[`probabilities${i + 2}`];
    const least = Math.min(...said);
    holders(fine.cells, part.cells).forEach((at, cell) => (scores[cell] *= at < 0 ? least : said[at]));
  });
  const sum = scores.reduce((a, b) => a + b, 0) || 1;
  const guesses = largest(scores, TOP).map((i) => {
    const [latitude, longitude] = fine.means[i];
    return { latitude, longitude, probability: scores[i] / sum };
  });
  return { kind: "place", guesses };
}

/**
 * For each of S2's cells, which of the coarser ones holds it; -1 where none does. Both are in the order of their ids.
 *
 * @param {string[]} cells  their tokens: an id in hexadecimal digits, without the zeros at its end
 * @param {string[]} coarser
 */
function holders(cells, coarser) {
  /** @type {(token: string) => bigint} */
  const id = (token) => BigInt(`0x${token.padEnd(16, "0")}`);
  const ids = coarser.map(id);
  let at = 0;
  return cells.map(id).map((cell) => {
    while (at < ids.length && last(ids[at]) < cell) at++;
    return at < ids.length && ids[at] - (last(ids[at]) - ids[at]) <= cell ? at : -1;
  });
}

/**
 * The last of the smallest cells that a cell holds.
 * @param {bigint} id
 */
function last(id) {
  return id + (id & -id) - 1n;
}

/** @param {Outputs} outputs @returns {Vector} */
function vector(outputs) {
  const values = outputs.vector ?? outputs.features;
  const length = Math.hypot(...values) || 1;
  return { kind: "vector", vector: values.map((v) => v / length) };
}
