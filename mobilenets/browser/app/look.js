/**
 * Where a classifier looks: its class activation map (Zhou and others 2016, equation 2), the linear layer's weights of a
 * label over the last map. Exact, as the layer reads that map's mean.
 *
 * @typedef {{offset: number, type: "int8" | "float16" | "float32", panel: number, group: number, depth: number}} Looks
 *     where the weights lie in the network's file: [labels/panel][depth/group][panel][group]
 * @typedef {{width: number, height: number, values: Float32Array}} Look  values: from 0, nothing, to 1, the most
 */

const SIZES = { int8: 1, float16: 2, float32: 4 };

/**
 * What speaks for a label, at each position of the last map.
 *
 * @param {Uint8Array} file
 * @param {Looks} looks
 * @param {Float32Array} map  [channels][height][width]
 * @param {number} width
 * @param {number} height
 * @param {number} label  its place among the labels
 * @returns {Look}
 */
export function look(file, looks, map, width, height, label) {
  const pixels = width * height;
  const values = new Float32Array(pixels);
  const { depth, group, panel } = looks;
  const first = Math.floor(label / panel) * depth * panel;
  const read = reader(file, looks);
  for (let k = 0; k < map.length / pixels; k++) {
    const w = read(first + (Math.floor(k / group) * panel + (label % panel)) * group + (k % group));
    for (let i = 0; i < pixels; i++) values[i] += w * map[k * pixels + i];
  }
  const most = Math.max(...values);
  return { width, height, values: values.map((v) => (most > 0 ? Math.max(0, v / most) : 0)) };
}

/**
 * The number at a place of the weights.
 * @param {Uint8Array} file
 * @param {Looks} looks
 * @returns {(at: number) => number}
 */
function reader(file, { offset, type }) {
  const view = new DataView(file.buffer, file.byteOffset + offset);
  const size = SIZES[type];
  if (type === "int8") return (at) => view.getInt8(at * size);
  if (type === "float32") return (at) => view.getFloat32(at * size, true);
  return (at) => half(view.getUint16(at * size, true));
}

/**
 * A 16-bit float, by its bits.
 * @param {number} bits
 */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  return bits >> 15 ? -size : size;
}
