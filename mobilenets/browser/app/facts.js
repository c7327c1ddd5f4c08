/**
 * What is known of a network, from its card.
 *
 * @import {Network} from "./network.js"
 * @import {Listed} from "./app.js"
 */

const MOST = 12; // labels that are named

/**
 * @param {HTMLElement} list  a dl
 * @param {Network} network
 * @param {Listed} listed
 */
export function facts(list, network, listed) {
  /** @type {any} */
  const card = network.card;
  const labels = card.config.labels ?? [];
  const more = labels.length > MOST ? ` and ${labels.length - MOST} more` : "";
  const scores = card.metrics.map(
    (/** @type {any} */ m) => `${m.name} ${m.value.toFixed(2)}${m.unit} on ${m.data}, ${m.split}, ${m.count} images`,
  );
  const rows = [
    ["Network", `${listed.title}, ${card.precision}`],
    ["Task", card.task],
    ["Labels", labels.slice(0, MOST).join(", ") + more],
    ["Score", scores.join("; ")],
    ["Trained on", card.data.source ?? ""],
    ["Licence", card.licence || "not stated"],
    ["Runs in", network.engine],
  ];
  list.replaceChildren(
    ...rows.filter(([, value]) => value).flatMap(([name, value]) => {
      const [term, told] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      told.textContent = value;
      return [term, told];
    }),
  );
}
