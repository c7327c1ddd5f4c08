/**
 * A thread of the engine's: see threads.js.
 *
 * @import {Begin} from "./threads.js"
 */

import { yielding } from "./threads.js";

/**
 * @param {Begin} begin
 * @param {() => void} ready
 */
function work({ module, memory, stack, work, argument }, ready) {
  const none = () => 0; // it starts no threads and reads no clock
  const host = {
    env: { memory },
    mnet: { thread_start: none, thread_yield: yielding() },
    wasi_snapshot_preview1: { clock_time_get: none },
  };
  const { exports } = new WebAssembly.Instance(module, host);
  /** @type {WebAssembly.Global} */ (exports.__stack_pointer).value = stack;
  ready();
  /** @type {WebAssembly.Table} */ (exports.__indirect_function_table).get(work)(argument); // until it is ended
}

if ("postMessage" in globalThis) {
  onmessage = ({ data }) => work(data, () => postMessage("ready"));
} else {
  const name = "node:worker_threads";
  const { parentPort } = await import(name);
  parentPort.once("message", (/** @type {Begin} */ data) => work(data, () => parentPort.postMessage("ready")));
}
