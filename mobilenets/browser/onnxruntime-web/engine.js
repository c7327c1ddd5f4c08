/**
 * What runs a network's file, behind one function: here ONNX Runtime Web, on WebGPU where there is one.
 *
 * @import {Card, Outputs} from "./engine/mnet.js"
 * @typedef {object} Running
 * @property {Card} card
 * @property {string} name  what computes, as people read it
 * @property {string[]} fetched  what it needed besides the file
 * @property {Record<string, number[]>} shapes  of the outputs, by name
 * @property {(pixels: Uint8Array) => Outputs | Promise<Outputs>} run  of one image, uint8 RGB [height][width][3]
 */

import { inputSize } from "./placement.js";

/** @type {Record<string, string[]>} Of a provider: the module, and what that loads. */
const FILES = {
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
};

/**
 * @param {Promise<Uint8Array>} bytes  on their way
 * @param {string} address  theirs
 * @returns {Promise<Running>}
 */
export async function open(bytes, address) {
  /** @type {any} */
  const gpu = /** @type {any} */ (navigator).gpu;
  const provider = (await gpu?.requestAdapter()) ? "webgpu" : "wasm";
  const files = FILES[provider].map((name) => `ort/${name}`);
  const ort = await import(new URL(files[0], import.meta.url).href);
  ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
  ort.env.logLevel = "error";
  const beside = await fetch(`${address}.card.json`);
  if (!beside.ok) throw new Error(`${address}.card.json: ${beside.status} ${beside.statusText}`);
  /** @type {any} */
  const card = await beside.json();
  const session = await ort.InferenceSession.create(await bytes, { executionProviders: [provider] });
  const [rows, columns] = inputSize(card.preprocess);
  /** @type {(pixels: Uint8Array) => Promise<any>} */
  const whole = (pixels) => session.run({ [session.inputNames[0]]: new ort.Tensor("uint8", pixels, [1, rows, columns, 3]) });
  const first = await whole(new Uint8Array(rows * columns * 3));
  return {
    card,
    name: `ONNX Runtime Web (${provider === "webgpu" ? "WebGPU" : "WebAssembly"})`,
    fetched: [...files, `${new URL(address).pathname}.card.json`],
    shapes: Object.fromEntries(session.outputNames.map((/** @type {string} */ n) => [n, first[n].dims.slice(1)])),
    run: async (pixels) => {
      const made = await whole(pixels);
      return Object.fromEntries(session.outputNames.map((/** @type {string} */ n) => [n, made[n].data]));
    },
  };
}
