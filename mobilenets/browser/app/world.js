/**
 * Guesses on a map of the world: degrees as they are, 360 across and 180 down.
 *
 * @import {Guess} from "./answers.js"
 */

const HALF = 180; // degrees around the world

/** @type {Promise<[number, number][][]> | undefined} */
let coasts;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Guess[]} guesses  the most probable first
 */
export async function map(canvas, guesses) {
  coasts ??= fetch("world.json").then((answer) => answer.json());
  const land = await coasts;
  const pen = canvas.getContext("2d");
  if (!pen) return;
  const { width, height } = canvas;
  const style = getComputedStyle(canvas);
  /** @type {(longitude: number, latitude: number) => [number, number]} */
  const at = (longitude, latitude) => [((longitude + 180) / 360) * width, ((90 - latitude) / 180) * height];
  pen.fillStyle = style.getPropertyValue("--track");
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = style.getPropertyValue("--soft");
  pen.beginPath();
  for (const coast of land)
    coast.forEach(([longitude, latitude], i) => {
      const apart = i && Math.abs(longitude - coast[i - 1][0]) > HALF; // over the date line
      (i && !apart ? pen.lineTo : pen.moveTo).call(pen, ...at(longitude, latitude));
    });
  pen.fill();
  pen.strokeStyle = "#fff";
  pen.lineWidth = 2;
  [...guesses].reverse().forEach(({ latitude, longitude, probability }) => {
    pen.fillStyle = style.getPropertyValue("--accent");
    pen.beginPath();
    pen.arc(...at(longitude, latitude), 5 + 9 * Math.sqrt(probability), 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  });
}
