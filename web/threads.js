/**
 * The threads of an engine in WebAssembly: workers that share its memory. Where a page's memory may be shared is up to
 * how it is served: https://developer.mozilla.org/docs/Web/API/Window/crossOriginIsolated.
 *
 * @module
 */

/**
 * @typedef {object} Begin  what a worker is told, once
 * @property {WebAssembly.Module} module
 * @property {WebAssembly.Memory} memory
 * @property {number} stack  where its own ends
 * @property {number} work  a function, in the module's table
 * @property {number} argument
 */

const STACK = 262144; // bytes, as the linker gives the first thread
const MOMENT = 0.02; // ms
const PAGES = { initial: 32, maximum: 8192 }; // of 64 kB each

/** How many threads run where none are asked for: of half the processors, up to 4; 1 where memory can't be shared. */
export function bestThreads() {
  if (!globalThis.crossOriginIsolated) return 1;
  return Math.min(4, Math.ceil((globalThis.navigator?.hardwareConcurrency || 1) / 2));
}

/** Memory that workers share. */
export function sharedMemory() {
  if (globalThis.crossOriginIsolated === false) throw new Error("threads need a page that is cross-origin isolated");
  return new WebAssembly.Memory({ ...PAGES, shared: true });
}

/**
 * What lets others run for a moment, on the thread that asks for it. A page's own may not wait: it goes on looking.
 * @returns {() => void}
 */
export function yielding() {
  if (globalThis.document) return () => undefined;
  const cell = new Int32Array(new SharedArrayBuffer(4));
  return () => void Atomics.wait(cell, 0, 0, MOMENT);
}

/** Starts threads and ends them. */
export class Threads {
  /** @type {(() => void)[]} */
  #ends = [];
  /** @type {Promise<void>[]} */
  #begun = [];

  /**
   * Start one; only once `ready` is awaited does it run.
   *
   * @param {Omit<Begin, "stack">} what
   * @param {(size: number) => number} room  gives memory
   */
  start(what, room) {
    const stack = room(STACK) + STACK;
    const begun = made().then(
      ({ post, said, end }) => {
        this.#ends.push(end);
        post({ ...what, stack });
        return said;
      },
    );
    begun.catch(() => undefined); // whoever awaits `ready` is told
    this.#begun.push(begun);
  }

  /** Resolves when all have begun. */
  async ready() {
    await Promise.all(this.#begun);
  }

  end() {
    for (const end of this.#ends) end();
    this.#ends = [];
  }
}

/**
 * A worker of the page's, or of Node's.
 * @returns {Promise<{post: (begin: Begin) => void, said: Promise<void>, end: () => void}>}
 */
async function made() {
  const url = new URL("./worker.js", import.meta.url);
  if (globalThis.Worker) {
    const worker = new Worker(url, { type: "module" });
    const said = new Promise((resolve, reject) => {
      worker.onmessage = () => resolve(undefined);
      worker.onerror = (e) => reject(new Error(`no thread: ${e.message || `${url} can't be loaded`}`));
    });
    return { post: (begin) => worker.postMessage(begin), said, end: () => worker.terminate() };
  }
  const name = "node:worker_threads"; // not a literal: bundlers would look for it
  const { Worker: NodeWorker } = await import(name);
  const worker = new NodeWorker(url);
  const said = new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  said.then(() => worker.unref(), () => undefined); // a program ends without waiting for it
  return { post: (begin) => worker.postMessage(begin), said, end: () => worker.terminate() };
}
