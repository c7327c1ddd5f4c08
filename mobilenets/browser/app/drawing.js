/**
 * What is drawn over a picture: boxes as `mobilenets.tasks.detect.answers` draws them, and where a classifier looks.
 *
 * @import {Found} from "./answers.js"
 * @import {Look} from "./look.js"
 * @import {Rectangle} from "./placement.js"
 */

const TURN = 0.618034; // of the colour circle from one class to the next, as in Python
const FIRST = 0.08;
const CORNER = 0.09; // of the side: how long the marks at the corners of what is seen are
const SHADE = 0.68; // opacity of it where a classifier doesn't look: what it looks at stays light, whatever its colour

/**
 * A class's colour, as CSS has it.
 * @param {number} index
 */
export function colour(index) {
  const hue = ((FIRST + TURN * index) % 1) * 360;
  return `hsl(${hue.toFixed(0)} 90% 55%)`;
}

/** Draws on a canvas that lies over a picture and has its size in pixels. */
export class Drawing {
  #canvas;
  #context;
  #small = document.createElement("canvas");
  #still = ""; // what is drawn, where that is the same from frame to frame
  mirrored = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("This browser gives no canvas to draw on.");
    this.#canvas = canvas;
    this.#context = context;
  }

  /**
   * What there is to draw over a picture of this size; nothing is done where it is drawn already.
   * @param {number} width
   * @param {number} height
   * @param {Rectangle} part  of the picture: what the network sees
   * @param {Look | null} look
   * @param {Found[] | null} boxes  the surest first
   */
  draw(width, height, part, look, boxes) {
    const still = look || boxes ? "" : `${width} ${height} ${this.mirrored}`;
    if (still && still === this.#still) return;
    this.clear(width, height);
    if (look) this.#look(look, part);
    if (boxes) this.#boxes(boxes);
    else this.#corners(part);
    this.#still = still;
  }

  /**
   * An empty one, of a picture's size.
   * @param {number} width
   * @param {number} height
   */
  clear(width, height) {
    this.#still = "";
    if (this.#canvas.width !== width || this.#canvas.height !== height)
      [this.#canvas.width, this.#canvas.height] = [width, height];
    else this.#context.clearRect(0, 0, width, height);
  }

  /**
   * The left edge of something in the picture, as it is shown.
   * @param {number} x
   * @param {number} width
   */
  #left(x, width) {
    return this.mirrored ? this.#canvas.width - x - width : x;
  }

  /**
   * Marks at the corners of the part that the network sees, where that isn't all.
   * @param {Rectangle} part
   */
  #corners({ x, y, width, height }) {
    const pen = this.#context;
    if (x <= 0 && y <= 0) return;
    const length = CORNER * Math.min(width, height);
    const left = this.#left(x, width);
    pen.beginPath();
    for (const [cx, right] of [[left, 1], [left + width, -1]])
      for (const [cy, down] of [[y, 1], [y + height, -1]]) {
        pen.moveTo(cx + right * length, cy);
        pen.lineTo(cx, cy);
        pen.lineTo(cx, cy + down * length);
      }
    const thick = Math.max(2, Math.min(this.#canvas.width, this.#canvas.height) / 160);
    for (const [style, wide] of /** @type {[string, number][]} */ ([["rgb(0 0 0 / 45%)", 2 * thick], ["#fff", thick]])) {
      pen.strokeStyle = style;
      pen.lineWidth = wide;
      pen.stroke();
    }
  }

  /**
   * @param {Look} look
   * @param {Rectangle} part  of the picture: what the network sees
   */
  #look({ width, height, values }, part) {
    const small = this.#small;
    [small.width, small.height] = [width, height];
    const inner = small.getContext("2d");
    if (!inner) return;
    const pixels = inner.createImageData(width, height);
    values.forEach((v, i) => pixels.data.set([0, 0, 0, Math.round(255 * SHADE * (1 - v))], 4 * i));
    inner.putImageData(pixels, 0, 0);
    const pen = this.#context;
    pen.save();
    if (this.mirrored) pen.setTransform(-1, 0, 0, 1, this.#canvas.width, 0);
    pen.fillStyle = `rgb(0 0 0 / ${SHADE})`;
    pen.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    pen.clearRect(part.x, part.y, part.width, part.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, part.x, part.y, part.width, part.height);
    pen.restore();
  }

  /** @param {Found[]} found  the surest first */
  #boxes(found) {
    const pen = this.#context;
    const side = Math.min(this.#canvas.width, this.#canvas.height);
    const thick = Math.max(2, side / 160);
    const size = Math.max(12, side / 24);
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    pen.lineWidth = thick;
    for (const { label, score, index, box: [x1, y1, x2, y2] } of [...found].reverse()) {
      const left = this.#left(x1, x2 - x1);
      const paint = colour(index);
      pen.strokeStyle = pen.fillStyle = paint;
      pen.strokeRect(left, y1, x2 - x1, y2 - y1);
      const text = `${label} ${Math.round(100 * score)}%`;
      const [wide, high] = [pen.measureText(text).width + size, 1.4 * size];
      const top = Math.max(0, y1 - high);
      const start = Math.max(0, Math.min(left - thick / 2, this.#canvas.width - wide)); // in the picture, as far as it fits
      pen.fillRect(start, top, wide, high);
      pen.fillStyle = "#000";
      pen.fillText(text, start + size / 2, top + high / 2);
    }
  }
}
