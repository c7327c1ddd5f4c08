/**
 * Where an image lies in a network's input, as `mobilenets.model.images.Preprocess.place` has it.
 *
 * @import {Preprocess} from "./engine/pictures.js"
 * @typedef {{scaleX: number, scaleY: number, left: number, top: number}} Placement  input = image x scale + offset
 * @typedef {{x: number, y: number, width: number, height: number}} Rectangle
 */

/**
 * @param {Preprocess} how
 * @param {number} width
 * @param {number} height
 * @returns {Placement}
 */
export function place(how, width, height) {
  const [rows, columns] = inputSize(how);
  if (how.framing === "stretch") return { scaleX: columns / width, scaleY: rows / height, left: 0, top: 0 };
  if (how.framing === "letterbox") {
    const scale = Math.min(columns / width, rows / height);
    const wide = Math.max(1, Math.round(width * scale));
    const high = Math.max(1, Math.round(height * scale));
    const left = Math.floor((columns - wide) / 2);
    return { scaleX: wide / width, scaleY: high / height, left, top: Math.floor((rows - high) / 2) };
  }
  const scale = Math.max(columns / width, rows / height) / (how.crop ?? 0.875);
  return { scaleX: scale, scaleY: scale, left: (columns - width * scale) / 2, top: (rows - height * scale) / 2 };
}

/**
 * Height and width of a network's input.
 * @param {Preprocess} how
 * @returns {[number, number]}
 */
export function inputSize(how) {
  return how.size ?? [how.resolution, how.resolution];
}

/**
 * The input's own rectangle, in pixels of the image: the part that is cut out, or what is around the image too.
 *
 * @param {Preprocess} how
 * @param {number} width
 * @param {number} height
 * @returns {Rectangle}
 */
export function seen(how, width, height) {
  const [rows, columns] = inputSize(how);
  const { scaleX, scaleY, left, top } = place(how, width, height);
  return { x: -left / scaleX, y: -top / scaleY, width: columns / scaleX, height: rows / scaleY };
}
