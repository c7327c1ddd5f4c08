/**
 * MobileNets in a web page: the engine of `mobilenets` as WebAssembly, for .mnet files (`mobilenets export --to
 * native`).
 *
 *     import {load} from "./mnet.js";
 *     const net = await load("model.mnet");
 *     const {top, probabilities} = await net.predict(document.querySelector("img"));
 *
 * mnet-scalar.wasm, mnet-simd.wasm and mnet-relaxed.wasm lie beside this file; the best that the browser can run is
 * fetched. All give the same bytes in int8. Runs in pages, workers, Node and Deno; nothing is sent anywhere.
 *
 * @module
 */

/**
 * @typedef {"scalar" | "simd" | "relaxed"} Build
 * @typedef {{name: string, shape: number[]}} Output  shape: [channels] or [channels, height, width]
 * @typedef {{label: string, probability: number}} Ranked
 * @typedef {Record<string, Float32Array>} Outputs  by name, of one image or of several, one after another
 * @typedef {{top: Ranked[], outputs: Outputs, probabilities: Float32Array}} Prediction  top: a classifier's best labels
 * @typedef {{width: number, height: number, data: Uint8ClampedArray | Uint8Array}} Picture  RGBA, as ImageData
 * @typedef {ImageData | Picture | HTMLImageElement | HTMLVideoElement | HTMLCanvasElement | OffscreenCanvas |
 *     ImageBitmap | Blob} Image
 * @typedef {{resolution: number, crop?: number, interpolation?: "bilinear" | "bicubic",
 *     framing?: "crop" | "letterbox" | "stretch", size?: [number, number]}} Preprocess
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

const ROOM = 256; // bytes of a message
const ALIGNED = 64; // where a file begins
const GREY = 128; // around a letterboxed image

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
 * @returns {Promise<Engine>}
 */
async function start(url) {
  /** @type {Engine | undefined} */
  let engine;
  const host = {
    /** @type {(clock: number, precision: bigint, at: number) => number} */
    clock_time_get: (_clock, _precision, at) => {
      const now = BigInt(Math.round(performance.now() * 1e6));
      if (engine) new DataView(engine.memory.buffer).setBigUint64(at, now, true);
      return 0;
    },
  };
  const instance = await WebAssembly.instantiate(await compiled(url), { wasi_snapshot_preview1: host });
  engine = /** @type {Engine} */ (/** @type {unknown} */ (instance.exports));
  engine._initialize();
  return engine;
}

/**
 * Load a network: from an address, relative to the page, or from the bytes of its file.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array} source
 * @param {{build?: Build, base?: string | URL, isa?: string}} [options]  build: one of the three, instead of the best;
 *     base: where the .wasm lie, if not beside this module; isa: kernels by name ("scalar"), for comparisons
 * @returns {Promise<Net>}
 */
export async function load(source, options = {}) {
  const base = new URL(options.base ?? ".", import.meta.url);
  const engine = start(new URL(`mnet-${options.build ?? bestBuild()}.wasm`, base));
  engine.catch(() => undefined); // what `source` says comes first
  /** @type {Uint8Array} */
  let bytes;
  if (source instanceof Uint8Array) bytes = source;
  else if (source instanceof ArrayBuffer) bytes = new Uint8Array(source);
  else bytes = await fetched(new URL(source, globalThis.location?.href ?? import.meta.url));
  return new Net(await engine, bytes, options.isa);
}

/** A network, in a WebAssembly memory that goes with the object. Calls run on the thread that makes them. */
export class Net {
  /** @type {Engine} */
  #engine;
  #session;
  #image;
  #results;
  #pointers;

  /**
   * @param {Engine} engine
   * @param {Uint8Array} bytes
   * @param {string} [isa]
   */
  constructor(engine, bytes, isa) {
    this.#engine = engine;
    const file = this.#room(bytes.length);
    new Uint8Array(engine.memory.buffer).set(bytes, file);
    const why = this.#room(ROOM);
    const model = engine.mnet_open(file, bytes.length, why, ROOM);
    if (!model) throw new Error(`not a network that runs here: ${this.#text(why)}`);
    const name = this.#room(ROOM);
    new Uint8Array(engine.memory.buffer).set(new TextEncoder().encode((isa ?? "").slice(0, ROOM / 4) + "\0"), name);
    this.#session = engine.mnet_session(model, 1, isa ? name : 0, why, ROOM);
    if (!this.#session) throw new Error(this.#text(why));

    const numbers = this.#room(32);
    const at = engine.mnet_card(model, numbers);
    const size = this.#ints(numbers, 1)[0];
    /** @type {Card} What is known of the network: see `mobilenets show`. */
    this.card = JSON.parse(new TextDecoder().decode(new Uint8Array(engine.memory.buffer, at, size)));
    engine.mnet_image(model, numbers, numbers + 4);
    const [height, width] = this.#ints(numbers, 2);
    /** Height and width of its images in pixels. */
    this.height = height;
    this.width = width;
    /** @type {string[]} A classifier's labels. */
    this.labels = this.card.config?.labels ?? [];
    /** Which kernels run: "scalar", "wasm", ... */
    this.isa = this.#text(engine.mnet_isa(this.#session));
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
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
  }

  /**
   * @param {number} at
   * @param {number} n
   */
  #ints(at, n) {
    return [...new Int32Array(this.#engine.memory.buffer, at, n)];
  }

  /**
   * Every output of images that are uint8 RGB [n][height][width][3] already.
   *
   * @param {Uint8Array | Uint8ClampedArray} images
   * @returns {Outputs}
   */
  run(images) {
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

/**
 * Whatever shows pixels, as RGBA.
 * @param {Image} image
 * @returns {Promise<Picture>}
 */
async function picture(image) {
  if ("data" in image) return image;
  const source = image instanceof Blob ? await createImageBitmap(image) : image;
  const [width, height] =
    "naturalWidth" in source
      ? [source.naturalWidth, source.naturalHeight]
      : "videoWidth" in source
        ? [source.videoWidth, source.videoHeight]
        : [source.width, source.height];
  if (!width || !height) throw new Error("the image has no pixels (yet): wait until it is loaded");
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("no canvas to read the image's pixels from");
  context.fillStyle = "white"; // what shows where it is transparent, as in `mobilenets predict`
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

/**
 * A picture as uint8 RGB of the network's size: the bytes of Pillow, which `mobilenets predict` uses (but where
 * Pillow resizes along the columns first, as it does for narrow, high images).
 *
 * @param {Picture} image
 * @param {Preprocess} how
 * @returns {Uint8Array}
 */
export function fit(image, how) {
  const [rows, columns] = how.size ?? [how.resolution, how.resolution];
  const framing = how.framing ?? "crop";
  const bicubic = how.interpolation === "bicubic";
  const { width, height } = image;
  if (image.data.length !== width * height * 4) throw new Error("an image's data has to be RGBA, 4 bytes a pixel");
  const rgb = opaque(image);
  if (framing === "stretch") return resized(rgb, width, height, 0, 0, width, height, columns, rows, bicubic);
  if (framing === "crop") {
    const crop = how.crop ?? 0.875;
    const part = Math.min(width / columns, height / rows) * crop; // pixels of it to one of the input
    const square = Math.min(width, height) * crop;
    const [wide, high] = rows === columns ? [square, square] : [columns * part, rows * part];
    const left = (width - wide) / 2;
    const top = (height - high) / 2;
    return resized(rgb, width, height, left, top, left + wide, top + high, columns, rows, bicubic);
  }
  const scale = Math.min(columns / width, rows / height);
  const wide = Math.max(1, halfToEven(width * scale));
  const high = Math.max(1, halfToEven(height * scale));
  const inner = resized(rgb, width, height, 0, 0, width, height, wide, high, bicubic);
  const out = new Uint8Array(rows * columns * 3).fill(GREY);
  const left = Math.floor((columns - wide) / 2);
  const top = Math.floor((rows - high) / 2);
  for (let y = 0; y < high; y++)
    out.set(inner.subarray(y * wide * 3, (y + 1) * wide * 3), ((top + y) * columns + left) * 3);
  return out;
}

/** @param {number} x */
function halfToEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

/**
 * RGB over white.
 * @param {Picture} image
 */
function opaque({ data, width, height }) {
  const out = new Uint8Array(width * height * 3);
  for (let i = 0, o = 0; i < data.length; i += 4, o += 3) {
    const alpha = data[i + 3];
    for (let c = 0; c < 3; c++)
      out[o + c] = alpha === 255 ? data[i + c] : Math.round((data[i + c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return out;
}

/** @type {(x: number) => number} */
const triangle = (x) => Math.max(0, 1 - Math.abs(x));

/** @type {(x: number) => number} */
function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

const BITS = 22; // of a weight behind the point

/**
 * For each of `out` pixels, the first input that it sees and the weights of those from there on.
 *
 * @param {number} size @param {number} from @param {number} to @param {number} out @param {boolean} bicubic
 */
function weights(size, from, to, out, bicubic) {
  const scale = Math.fround(to - from) / out;
  const stretch = Math.max(scale, 1);
  const support = (bicubic ? 2 : 1) * stretch;
  const filter = bicubic ? cubic : triangle;
  return Array.from({ length: out }, (_, i) => {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const real = Array.from({ length: last - first }, (_, x) => filter((x + first - centre + 0.5) * (1 / stretch)));
    const sum = real.reduce((a, b) => a + b, 0);
    const whole = real.map((w) => (sum ? w / sum : w) * 2 ** BITS);
    return { first, weights: Int32Array.from(whole, (w) => Math.trunc(w < 0 ? w - 0.5 : w + 0.5)) };
  });
}

/** @type {(sum: number) => number} */
const clipped = (sum) => Math.min(255, Math.max(0, sum >> BITS));

/**
 * A box of an RGB image, in another size, antialiased: first along the rows that are needed, then along the columns.
 *
 * @param {Uint8Array} rgb @param {number} width @param {number} height
 * @param {number} left @param {number} top @param {number} right @param {number} bottom
 * @param {number} columns @param {number} rows @param {boolean} bicubic
 * @returns {Uint8Array}
 */
function resized(rgb, width, height, left, top, right, bottom, columns, rows, bicubic) {
  [left, top, right, bottom] = [left, top, right, bottom].map(Math.fround); // as Pillow takes them
  const across = weights(width, left, right, columns, bicubic);
  const down = weights(height, top, bottom, rows, bicubic);
  const firstRow = down[0].first;
  const lastRow = down[rows - 1].first + down[rows - 1].weights.length;
  const same = columns === width && left === 0 && right === width;
  let narrow = rgb.subarray(firstRow * width * 3, lastRow * width * 3);
  if (!same) {
    const from = narrow;
    narrow = new Uint8Array((lastRow - firstRow) * columns * 3);
    for (let y = 0, o = 0; y < lastRow - firstRow; y++)
      for (const { first, weights: w } of across) {
        let at = (y * width + first) * 3;
        let r = 2 ** (BITS - 1), g = r, b = r;
        for (let x = 0; x < w.length; x++, at += 3) {
          r += from[at] * w[x];
          g += from[at + 1] * w[x];
          b += from[at + 2] * w[x];
        }
        narrow[o++] = clipped(r);
        narrow[o++] = clipped(g);
        narrow[o++] = clipped(b);
      }
  }
  if (rows === height && top === 0 && bottom === height) return narrow;
  const out = new Uint8Array(rows * columns * 3);
  const row = columns * 3;
  down.forEach(({ first, weights: w }, y) => {
    for (let x = 0; x < row; x++) {
      let sum = 2 ** (BITS - 1);
      for (let j = 0; j < w.length; j++) sum += narrow[(first - firstRow + j) * row + x] * w[j];
      out[y * row + x] = clipped(sum);
    }
  });
  return out;
}
