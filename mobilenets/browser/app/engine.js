/**
 * What runs a network's file, behind one function: here the engine of `mobilenets` in WebAssembly.
 *
 * @import {Card, Outputs} from "./engine/mnet.js"
 * @typedef {object} Running
 * @property {Card} card
 * @property {string} name  what computes, as people read it
 * @property {string[]} fetched  what it needed besides the file
 * @property {Record<string, number[]>} shapes  of the outputs, by name
 * @property {(pixels: Uint8Array) => Outputs | Promise<Outputs>} run  of one image, uint8 RGB [height][width][3]
 */

import { bestBuild, load } from "./engine/mnet.js";

/**
 * @param {Promise<Uint8Array>} bytes  on their way
 * @param {string} _address  theirs
 * @returns {Promise<Running>}
 */
export async function open(bytes, _address) {
  const build = bestBuild();
  const net = await load(bytes, { build });
  const several = net.threads > 1;
  return {
    card: net.card,
    name: `WebAssembly (${build}${several ? `, ${net.threads} threads` : ""})`,
    fetched: [`engine/mnet-${build}${several ? "-threads" : ""}.wasm`],
    shapes: Object.fromEntries(net.outputs.map(({ name, shape }) => [name, shape])),
    run: (pixels) => net.run(pixels),
  };
}
