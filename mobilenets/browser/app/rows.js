/**
 * Answers in words: a headline, a line below it, and rows with bars.
 *
 * @import {Answer, Guess} from "./answers.js"
 * @typedef {{label: string, value: string, share: number, faint?: boolean, paint?: string}} Line
 * @typedef {{headline: string, below: string, lines: Line[]}} Words
 * @typedef {{name: string, vector: Float32Array}} Remembered
 */

import { colour } from "./drawing.js";

const SHOWN = 8;
const KINDS = 3; // of objects, in a headline

/** @param {number} p */
export const percent = (p) => `${(100 * p).toFixed(1)}%`;

/** @param {Guess} guess */
function coordinates({ latitude, longitude }) {
  const north = `${Math.abs(latitude).toFixed(2)}° ${latitude < 0 ? "S" : "N"}`;
  return `${north}, ${Math.abs(longitude).toFixed(2)}° ${longitude < 0 ? "W" : "E"}`;
}

/**
 * @param {Answer} answer
 * @param {Remembered[]} remembered  what an embedding is compared with
 * @returns {Words}
 */
export function words(answer, remembered) {
  switch (answer.kind) {
    case "labels": {
      const lines = answer.rows.map(({ label, probability }, i) => ({
        label, value: percent(probability), share: probability, faint: i > 0,
      }));
      const [best] = answer.rows;
      return answer.unsure
        ? { headline: "Not sure", below: `perhaps ${best.label}, ${percent(best.probability)}`, lines }
        : { headline: best.label, below: `${percent(best.probability)} sure`, lines };
    }
    case "tags": {
      const holding = answer.rows.filter(({ holds }) => holds);
      const lines = answer.rows.slice(0, Math.max(SHOWN, holding.length)).map(({ label, probability, holds }) => ({
        label, value: percent(probability), share: probability, faint: !holds,
      }));
      const below = `${holding.length} of ${answer.rows.length} tags`;
      return { headline: holding.map(({ label }) => label).join(", ") || "No tag", below, lines };
    }
    case "boxes": {
      /** @type {Map<string, number>} */
      const counts = new Map();
      for (const { label } of answer.boxes) counts.set(label, (counts.get(label) ?? 0) + 1);
      const counted = [...counts].sort((a, b) => b[1] - a[1]).map(([label, n]) => `${n} ${label}`);
      const lines = answer.boxes.slice(0, SHOWN).map(({ label, score, index }) => ({
        label, value: percent(score), share: score, paint: colour(index),
      }));
      const more = counted.length - KINDS;
      const told = counted.slice(0, KINDS).join(", ") + (more > 0 ? ` and ${more} more` : "");
      const below = answer.boxes.length === 1 ? "one object" : `${answer.boxes.length} objects`;
      return { headline: told || "Nothing that it knows", below, lines };
    }
    case "place": {
      const lines = answer.guesses.map((guess, i) => ({
        label: coordinates(guess), value: percent(guess.probability), share: guess.probability, faint: i > 0,
      }));
      return { headline: lines[0].label, below: `${lines[0].value} sure`, lines };
    }
    case "vector": {
      const lines = remembered
        .map(({ name, vector }) => ({ name, cosine: vector.reduce((sum, v, i) => sum + v * answer.vector[i], 0) }))
        .sort((a, b) => b.cosine - a.cosine)
        .map(({ name, cosine }) => ({ label: name, value: cosine.toFixed(3), share: Math.max(0, cosine) }));
      const [best] = lines;
      return best
        ? { headline: `Most like ${best.label}`, below: `cosine ${best.value}`, lines }
        : { headline: "A vector", below: `of ${answer.vector.length} numbers: remember it, then show it another`, lines };
    }
  }
}

/** A list of rows that are kept and changed, so that a live picture costs little. */
export class Rows {
  #list;

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
  }

  /** @param {Line[]} lines */
  show(lines) {
    while (this.#list.children.length > lines.length) this.#list.lastElementChild?.remove();
    while (this.#list.children.length < lines.length) this.#list.append(row());
    lines.forEach(({ label, value, share, faint = false, paint = "" }, i) => {
      const [name, number, bar] = /** @type {HTMLElement[]} */ ([...this.#list.children[i].children]);
      name.textContent = label;
      number.textContent = value;
      for (const part of [name, number]) part.classList.toggle("faint", faint);
      const inner = /** @type {HTMLElement} */ (bar.firstElementChild);
      inner.style.transform = `scaleX(${Math.min(1, share).toFixed(3)})`;
      inner.style.background = paint;
    });
  }
}

function row() {
  const made = document.createElement("li");
  for (const name of ["label", "value", "bar"]) {
    const part = document.createElement("span");
    part.className = name;
    made.append(part);
  }
  made.lastElementChild?.append(document.createElement("span"));
  made.lastElementChild?.setAttribute("aria-hidden", "true");
  return made;
}
