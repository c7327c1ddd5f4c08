/**
 * The page that measures: networks in blocks, each block after a look at the reference, the first network, which tells
 * whether the device has slowed down.
 *
 * @import {Brought, Planned} from "./measuring.js"
 * @typedef {{digest: string, precision: string, title: string, latency_ms: number, reference: number}} Measured
 */

import { bestBuild } from "./engine/mnet.js";

const BLOCK = 8;
const HOT = 1.15; // times as slow as at its best
const FRAME_MS = 1000 / 60;

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

const headline = part("headline", HTMLElement);
const below = part("below", HTMLElement);
const bar = part("bar", HTMLProgressElement);
const start = part("start", HTMLButtonElement);

/** This device in words: browser, system, processors. */
async function device() {
  const agent = navigator.userAgent;
  /** @type {any} */
  const told = /** @type {any} */ (navigator).userAgentData;
  const more = await told?.getHighEntropyValues?.(["model"]).catch(() => ({}));
  const brand = told?.brands?.find((/** @type {any} */ b) => !/not.?a.?brand|^chromium$/i.test(b.brand));
  const version = /(Firefox|FxiOS|EdgA?|CriOS|Chrome|Version)\/(\d+)/.exec(agent);
  const names = { Version: "Safari", FxiOS: "Firefox", CriOS: "Chrome", EdgA: "Edge", Edg: "Edge" };
  const name = version ? (names[/** @type {keyof names} */ (version[1])] ?? version[1]) : "a browser";
  const browser = brand ? `${brand.brand} ${brand.version}` : `${name} ${version?.[2] ?? ""}`;
  const system = told?.platform || (/iPhone|iPad|Android [\d.]+|Mac OS X|Windows|Linux/.exec(agent)?.[0] ?? "");
  const count = navigator.hardwareConcurrency || 1;
  const cores = `${count} core${count > 1 ? "s" : ""}`;
  const on = [more?.model, system].filter(Boolean).join(", ");
  return `${on || "a device"}, ${cores}, ${browser.trim()}, WebAssembly (${bestBuild()})`;
}

/**
 * Run a block in a worker of its own.
 * @param {Brought[]} networks
 * @param {number} seconds
 * @param {(done: number) => void} told
 * @returns {Promise<Omit<Measured, "reference">[]>}
 */
function block(networks, seconds, told) {
  const worker = new Worker(new URL("./measuring.js", import.meta.url), { type: "module" });
  /** @type {Omit<Measured, "reference">[]} */
  const found = [];
  /** @type {Promise<Omit<Measured, "reference">[]>} */
  const done = new Promise((resolve, reject) => {
    worker.onerror = (e) => reject(new Error(e.message || "the worker can't be loaded"));
    worker.onmessage = ({ data }) => {
      if (data === null) resolve(found);
      else if (data.wrong) reject(new Error(data.wrong));
      else told(found.push(data));
    };
  });
  worker.postMessage({ networks, seconds });
  return done.finally(() => worker.terminate());
}

/**
 * Every network's file; those that can't run are left out.
 * @param {Planned[]} planned
 * @returns {Promise<Brought[]>}
 */
async function brought(planned) {
  const all = [];
  for (const [i, one] of planned.entries()) {
    const answer = await fetch(one.file);
    if (!answer.ok) throw new Error(`${one.title}: ${answer.status}; is mobilenets measure still running?`);
    const packed = await answer.arrayBuffer();
    if (packed.byteLength) all.push({ ...one, packed });
    bar.value = (0.1 * (i + 1)) / planned.length;
  }
  return all;
}

/**
 * @param {Brought[]} networks
 * @param {number} seconds
 * @returns {Promise<Measured[]>}
 */
async function measured(networks, seconds) {
  const end = performance.now() + 1000 * seconds;
  const [first] = networks;
  /** @type {number[]} */
  const references = [];
  /** @type {Omit<Measured, "reference">[][]} */
  const blocks = [];
  let done = 0;
  for (let at = 0; at <= networks.length; at += BLOCK) {
    const some = networks.slice(at, at + BLOCK);
    const left = (end - performance.now()) / 1000;
    const share = (some.length + 1) / (networks.length - at + Math.ceil((networks.length - at) / BLOCK) + 1);
    const [reference, ...found] = await block([first, ...some], Math.max(0, left * share), (n) => {
      bar.value = 0.1 + (0.9 * (done + n)) / (networks.length + 2);
      below.textContent = `${Math.min(done + n, networks.length)} of ${networks.length} networks`;
    });
    references.push(reference.latency_ms);
    blocks.push(found);
    done += found.length;
    if (!some.length) break;
  }
  const best = Math.min(...references);
  return blocks.flatMap((found, i) => {
    const reference = Math.max(references[i], references[i + 1] ?? 0) / best;
    return found.map((one) => ({ ...one, reference }));
  });
}

/** @param {Measured[]} found */
function show(found) {
  const sorted = [...found].sort((a, b) => a.latency_ms - b.latency_ms);
  const longest = sorted[sorted.length - 1].latency_ms;
  part("rows", HTMLElement).replaceChildren(
    ...sorted.map(({ title, precision, latency_ms: ms }) => {
      const made = document.createElement("li");
      const [name, value, line, inner] = ["label", "value", "bar", ""].map((kind) => {
        const span = document.createElement("span");
        span.className = kind;
        return span;
      });
      name.textContent = `${title}, ${precision}`;
      value.textContent = `${ms.toPrecision(3)} ms`;
      inner.style.transform = `scaleX(${(ms / longest).toFixed(4)})`;
      line.setAttribute("aria-hidden", "true");
      line.append(inner);
      made.append(name, value, line);
      return made;
    }),
  );
}

async function run() {
  start.hidden = true;
  bar.hidden = false;
  headline.textContent = "Measuring…";
  below.textContent = "Fetching the networks";
  const lock = await /** @type {any} */ (navigator).wakeLock?.request("screen").catch(() => undefined);
  const { seconds, networks } = await (await fetch("plan.json")).json();
  const found = await measured(await brought(networks), seconds);
  await lock?.release();
  const table = { machine: await device(), networks: found };
  const answer = await fetch("table", { method: "POST", body: JSON.stringify(table) });
  const { wrong } = answer.ok ? await answer.json() : { wrong: `the table wasn't taken: ${answer.status}` };
  if (wrong) throw new Error(wrong);
  bar.hidden = true;
  const quick = found.filter(({ latency_ms: ms }) => ms < FRAME_MS).length;
  const hot = found.filter(({ reference }) => reference > HOT).length;
  headline.textContent = part("said", HTMLElement).textContent = "Done: the table is on your computer";
  below.textContent =
    `${quick} of ${found.length} networks take less than a 60th of a second here.` +
    (hot ? ` ${hot} were measured while it was slower: it became hot, or busy with something else.` : "");
  show(found);
}

part("device", HTMLElement).textContent = await device();
start.disabled = false;
start.onclick = () =>
  run().catch((e) => {
    part("problem", HTMLElement).textContent = e instanceof Error ? e.message : String(e);
    headline.textContent = "It was not measured";
    [bar.hidden, start.hidden, start.textContent] = [true, false, "Try again"];
  });
