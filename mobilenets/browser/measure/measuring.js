/**
 * Measures networks, in a worker that ends after a few of them: what they took of the memory ends with it.
 *
 * @import {Net} from "./engine/mnet.js"
 * @typedef {{digest: string, title: string, precision: string, file: string}} Planned
 * @typedef {Planned & {packed: ArrayBuffer}} Brought  packed: see `mobilenets.deploy.device.packed`
 * @typedef {{networks: Brought[], seconds: number}} Request
 */

import { load } from "./engine/mnet.js";

const WARM_UP_MS = 50;
const ROUNDS = 3;
const LEAST = 3; // times in a round
const GRAINS = 10; // of the clock, in a time that is taken
const SEED = 1;
const SMALL_HALVES = 0xafffafff | 0; // bits of two 16-bit floats, each below an eighth

/** The smallest step of the clock, in milliseconds. */
function grain() {
  let least = Infinity;
  for (let i = 0; i < 10; i++) {
    const since = performance.now();
    let now = since;
    while (now === since) now = performance.now();
    least = Math.min(least, now - since);
  }
  return least;
}

/**
 * Numbers from a seed (xorshift32), the same everywhere.
 * @param {number} seed
 */
function random(seed) {
  return () => {
    seed ^= seed << 13;
    seed ^= seed >>> 17;
    seed ^= seed << 5;
    return seed;
  };
}

/**
 * A network with random weights in the place of its file's zeros.
 * @param {ArrayBuffer} packed
 * @returns {Promise<Net>}
 */
async function opened(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = whole.indexOf(10);
  /** @type {{weights: [number, number][], type: string}} */
  const { weights, type } = JSON.parse(new TextDecoder().decode(whole.subarray(0, end)));
  const net = await load(whole.subarray(end + 1), { threads: 1 });
  const next = random(SEED);
  for (const [offset, size] of weights) {
    const part = net.part(offset, size);
    if (type === "float32") {
      const floats = new Float32Array(part.buffer, part.byteOffset, size / 4);
      for (let i = 0; i < floats.length; i++) floats[i] = next() / 2 ** 34; // below an eighth
    } else {
      const words = new Int32Array(part.buffer, part.byteOffset, size / 4);
      const kept = type === "float16" ? SMALL_HALVES : -1;
      for (let i = 0; i < words.length; i++) words[i] = next() & kept;
    }
  }
  return net;
}

/** @param {number[]} values */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * The median of the quietest round, in milliseconds of one image.
 * @param {Net} net
 * @param {number} until  when it should be done, if it is that fast
 * @param {number} step  of the clock
 */
function latency(net, until, step) {
  const next = random(SEED);
  const pixels = Uint8Array.from({ length: net.height * net.width * 3 }, () => next() & 255);
  const since = performance.now();
  let runs = 0;
  do {
    net.run(pixels);
    runs++;
  } while (performance.now() - since < WARM_UP_MS);
  const group = Math.max(1, Math.ceil((GRAINS * step * runs) / (performance.now() - since)));
  const rounds = [];
  for (let round = 0; round < ROUNDS; round++) {
    const begun = performance.now();
    const end = begun + (until - begun) / (ROUNDS - round);
    const times = [];
    do {
      const before = performance.now();
      for (let i = 0; i < group; i++) net.run(pixels);
      times.push((performance.now() - before) / group);
    } while (times.length < LEAST || performance.now() < end);
    rounds.push(median(times));
  }
  return Math.min(...rounds);
}

/** @param {Request} request */
async function measured({ networks, seconds }) {
  const step = grain();
  const begun = performance.now();
  for (const [i, { packed, digest, precision, title }] of networks.entries()) {
    const net = await opened(packed);
    const ms = latency(net, begun + (1000 * seconds * (i + 1)) / networks.length, step);
    net.close();
    postMessage({ digest, precision, title, latency_ms: ms });
  }
  postMessage(null);
}

onmessage = ({ data }) => {
  measured(data).catch((e) => postMessage({ wrong: e instanceof Error ? e.message : String(e) }));
};
