/**
 * MobileNets in a web page: the engine of `mobilenets` as WebAssembly, for .mnet files (`mobilenets export --to
 * native`).
 *
 *     import {load} from "./mnet.js";
 *     const net = await load("model.mnet");
 *     const {top, probabilities} = await net.predict(document.querySelector("img"));
 *
 * pictures.js, threads.js, worker.js and the .wasm lie beside this file; of these the best that the browser can run is
 * fetched. All give the same bytes in int8. Runs in pages, workers, Node and Deno; nothing is sent anywhere.
 *
 * @module
 */

/**
 * @import {Image, Preprocess} from "./pictures.js"
 * @typedef {"scalar" | "simd" | "relaxed"} Build
 * @typedef {{name: string, shape: number[]}} Output  shape: [channels] or [channels, height, width]
 * @typedef {{label: string, probability: number}} Ranked
 * @typedef {Record<string, Float32Array>} Outputs  by name, of one image or of several, one after another
 * @typedef {{top: Ranked[], outputs: Outputs, probabilities: Float32Array}} Prediction  top: a classifier's best labels
 * @typedef {{task: string, preprocess: Preprocess, config: {labels?: string[]}}} Card
 */

/**
 * The exported functions; pointers and sizes are numbers.
 * @typedef {object} Engine
 * @property {WebAssembly.Memory} memory
 * @property {() => void} _initialize
 * @property {(alignment: number, size: number) => number} aligned_alloc
 * @property {(bytes: number, size: number, why: number, room: number) => number} mnet_open
 * @property {(model: number, size: number) => number} mnet_card
 * @property {(model: number, height: number, width: number) => void} mnet_image
 * @property {(model: number) => number} mnet_outputs
 * @property {(model: number, i: number, rank: number, shape: number) => number} mnet_output
 * @property {(model: number, threads: number, isa: number, why: number, room: number) => number} mnet_session
 * @property {(session: number) => number} mnet_isa
 * @property {(session: number, images: number, n: number, outputs: number) => number} mnet_run
 */

import { fit, picture } from "./pictures.js";
import { Threads, bestThreads, sharedMemory, yielding } from "./threads.js";

export { fit };

const ROOM = 256; // bytes of a message
const ALIGNED = 64; // where a file begins

// The smallest modules with one instruction of each kind: (i32) -> v128 of i8x16.splat and popcnt, or relaxed swizzle.
const START = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
const SIMD = [...START, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const RELAXED = [...START, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11];

/**
 * The best build that this browser can run.
 * @returns {Build}
 */
export function bestBuild() {
  if (WebAssembly.validate(new Uint8Array(RELAXED))) return "relaxed";
  return WebAssembly.validate(new Uint8Array(SIMD)) ? "simd" : "scalar";
}

/** @type {Map<string, Promise<WebAssembly.Module>>} */
const modules = new Map();

/**
 * @param {URL} url
 * @returns {Promise<Uint8Array>}
 */
async function fetched(url) {
  if (url.protocol === "file:") {
    const name = "node:fs/promises"; // not a literal: bundlers would look for it
    const { readFile } = await import(name);
    return readFile(url);
  }
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/**
 * @param {URL} url
 * @returns {Promise<WebAssembly.Module>}
 */
function compiled(url) {
  let module = modules.get(url.href);
  if (!module) {
    module = fetched(url).then((bytes) => WebAssembly.compile(/** @type {BufferSource} */ (bytes)));
    module.catch(() => modules.delete(url.href)); // the next call tries again
    modules.set(url.href, module);
  }
  return module;
}

/**
 * @param {URL} url
 * @param {Threads} [threads]  where there are to be several
 * @returns {Promise<Engine>}
 */
async function start(url, threads) {
  const module = await compiled(url);
  /** @type {Engine | undefined} */
  let engine;
  const memory = threads && sharedMemory();
  const host = {
    wasi_snapshot_preview1: {
      /** @type {(clock: number, precision: bigint, at: number) => number} */
      clock_time_get: (_clock, _precision, at) => {
        const now = BigInt(Math.round(performance.now() * 1e6));
        if (engine) new DataView(engine.memory.buffer).setBigUint64(at, now, true);
        return 0;
      },
    },
    ...(memory && { env: { memory } }),
    mnet: {
      /** @type {(work: number, argument: number) => number} */
      thread_start: (work, argument) => {
        if (!threads || !memory || !engine) return 0;
        threads.start({ module, memory, work, argument }, engine.aligned_alloc.bind(null, ALIGNED));
        return 1;
      },
      thread_yield: memory ? yielding() : () => undefined,
    },
  };
  const { exports } = await WebAssembly.instantiate(module, host);
  engine = /** @type {Engine} */ (/** @type {unknown} */ (memory ? { ...exports, memory } : exports));
  engine._initialize();
  return engine;
}

/**
 * Load a network: from an address, relative to the page, or from the bytes of its file, which may still be coming.
 *
 * @typedef {string | URL | ArrayBuffer | Uint8Array} Source
 * @param {Source | Promise<Source>} source
 * @param {{build?: Build, base?: string | URL, isa?: string, threads?: number}} [options]  build: one of the three,
 *     instead of the best; base: where the .wasm lie, if not beside this module; isa: kernels by name ("scalar"), for
 *     comparisons; threads: where not given, up to 4 in a page that is cross-origin isolated, else 1
 * @returns {Promise<Net>}
 */
export async function load(source, options = {}) {
  const base = new URL(options.base ?? ".", import.meta.url);
  const build = options.build ?? bestBuild();
  const count = options.threads ?? (build === "scalar" ? 1 : bestThreads());
  if (count > 1 && build === "scalar") throw new Error("plain WebAssembly has one thread");
  const threads = count > 1 ? new Threads() : undefined;
  const engine = start(new URL(`mnet-${build}${threads ? "-threads" : ""}.wasm`, base), threads);
  engine.catch(() => undefined); // what `source` says comes first
  try {
    const given = await source;
    /** @type {Uint8Array} */
    let bytes;
    if (given instanceof Uint8Array) bytes = given;
    else if (given instanceof ArrayBuffer) bytes = new Uint8Array(given);
    else bytes = await fetched(new URL(given, globalThis.location?.href ?? import.meta.url));
    const net = new Net(await engine, bytes, { ...options, threads: count }, () => threads?.end());
    await threads?.ready();
    return net;
  } catch (e) {
    threads?.end();
    throw e;
  }
}

/**
 * A network, in a WebAssembly memory that goes with the object. Calls run on the thread that makes them and, where it has
 * several, in workers.
 */
export class Net {
  /** @type {Engine} */
  #engine;
  #session;
  #image;
  #results;
  #pointers;
  #file;

  /**
   * @param {Engine} engine
   * @param {Uint8Array} bytes
   * @param {{isa?: string, threads?: number}} [options]
   * @param {() => void} [end]
   */
  constructor(engine, bytes, { isa = "", threads = 1 } = {}, end = () => undefined) {
    this.#engine = engine;
    /** Ends the threads; the network can't be run afterwards. */
    this.close = () => {
      this.#session = 0;
      end();
    };
    const file = (this.#file = this.#room(bytes.length));
    new Uint8Array(engine.memory.buffer).set(bytes, file);
    const why = this.#room(ROOM);
    const model = engine.mnet_open(file, bytes.length, why, ROOM);
    if (!model) throw new Error(`not a network that runs here: ${this.#text(why)}`);
    const name = this.#room(ROOM);
    new Uint8Array(engine.memory.buffer).set(new TextEncoder().encode(isa.slice(0, ROOM / 4) + "\0"), name);
    this.#session = engine.mnet_session(model, threads, isa ? name : 0, why, ROOM);
    if (!this.#session) throw new Error(this.#text(why));

    const numbers = this.#room(32);
    const at = engine.mnet_card(model, numbers);
    const size = this.#ints(numbers, 1)[0];
    /** @type {Card} What is known of the network: see `mobilenets show`. */
    this.card = JSON.parse(new TextDecoder().decode(new Uint8Array(engine.memory.buffer, at, size).slice()));
    engine.mnet_image(model, numbers, numbers + 4);
    const [height, width] = this.#ints(numbers, 2);
    /** Height and width of its images in pixels. */
    this.height = height;
    this.width = width;
    /** @type {string[]} A classifier's labels. */
    this.labels = this.card.config?.labels ?? [];
    /** Which kernels run: "scalar", "wasm", ... */
    this.isa = this.#text(engine.mnet_isa(this.#session));
    /** How many threads run it together. */
    this.threads = threads;
    /** @type {Output[]} */
    this.outputs = [];
    for (let i = 0; i < engine.mnet_outputs(model); i++) {
      const output = this.#text(engine.mnet_output(model, i, numbers, numbers + 4));
      const [rank, ...shape] = this.#ints(numbers, 4);
      this.outputs.push({ name: output, shape: shape.slice(0, rank) });
    }
    this.#image = this.#room(height * width * 3);
    this.#results = this.outputs.map((o) => this.#room(4 * product(o.shape)));
    this.#pointers = this.#room(4 * this.#results.length);
    new Uint32Array(engine.memory.buffer, this.#pointers).set(this.#results);
  }

  /**
   * @param {number} size
   * @returns {number}
   */
  #room(size) {
    const at = this.#engine.aligned_alloc(ALIGNED, Math.ceil((size + ALIGNED) / ALIGNED) * ALIGNED);
    if (!at) throw new Error(`no memory for ${size} bytes`);
    return at;
  }

  /** @param {number} at */
  #text(at) {
    const bytes = new Uint8Array(this.#engine.memory.buffer, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0))); // a copy: of shared memory none is decoded
  }

  /**
   * @param {number} at
   * @param {number} n
   */
  #ints(at, n) {
    return [...new Int32Array(this.#engine.memory.buffer, at, n)];
  }

  /**
   * A part of its file as it lies in memory, weights for example: what is written there is what it computes with, but
   * for weights that the file has coded.
   *
   * @param {number} offset
   * @param {number} size  in bytes
   */
  part(offset, size) {
    return new Uint8Array(this.#engine.memory.buffer, this.#file + offset, size);
  }

  /**
   * Every output of images that are uint8 RGB [n][height][width][3] already.
   *
   * @param {Uint8Array | Uint8ClampedArray} images
   * @returns {Outputs}
   */
  run(images) {
    if (!this.#session) throw new Error("the network is closed");
    const each = this.height * this.width * 3;
    const n = images.length / each;
    if (n < 1 || !Number.isInteger(n))
      throw new Error(`images of ${this.height} x ${this.width} x 3 bytes are needed, not ${images.length} bytes`);
    /** @type {Outputs} */
    const outputs = {};
    for (const { name, shape } of this.outputs) outputs[name] = new Float32Array(n * product(shape));
    for (let i = 0; i < n; i++) {
      new Uint8Array(this.#engine.memory.buffer).set(images.subarray(i * each, (i + 1) * each), this.#image);
      const wrong = this.#engine.mnet_run(this.#session, this.#image, 1, this.#pointers);
      if (wrong) throw new Error(`the engine refused to run (${wrong})`);
      this.outputs.forEach(({ name, shape }, j) => {
        const one = new Float32Array(this.#engine.memory.buffer, this.#results[j], product(shape));
        outputs[name].set(one, i * one.length);
      });
    }
    return outputs;
  }

  /**
   * What the network says of an image of any size, resized as its card says.
   *
   * @param {Image} image
   * @param {number} [top]  how many labels, the best first
   * @returns {Promise<Prediction>}
   */
  async predict(image, top = 5) {
    const outputs = this.run(fit(await picture(image), this.card.preprocess));
    const probabilities = outputs.probabilities ?? new Float32Array(0);
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    const best = order.slice(0, top).map((i) => ({ label: this.labels[i] ?? "", probability: probabilities[i] }));
    return { top: best, outputs, probabilities };
  }
}

/** @param {number[]} shape */
function product(shape) {
  return shape.reduce((a, b) => a * b, 1);
}
