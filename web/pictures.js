/**
 * Pictures of any size as a network's input: resized as Pillow does it.
 *
 * @module
 */

/**
 * @typedef {{width: number, height: number, data: Uint8ClampedArray | Uint8Array}} Picture  RGBA, as ImageData
 * @typedef {ImageData | Picture | HTMLImageElement | HTMLVideoElement | HTMLCanvasElement | OffscreenCanvas |
 *     ImageBitmap | Blob} Image
 * @typedef {{resolution: number, crop?: number, interpolation?: "bilinear" | "bicubic",
 *     framing?: "crop" | "letterbox" | "stretch", size?: [number, number]}} Preprocess
 */

const GREY = 128; // around a letterboxed image

/**
 * Whatever shows pixels, as RGBA.
 * @param {Image} image
 * @returns {Promise<Picture>}
 */
export async function picture(image) {
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
