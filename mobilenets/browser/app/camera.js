/**
 * The camera, and each of its frames as the network takes it: one at a time, the newest, whatever the network's speed.
 *
 * @import {Preprocess, Picture} from "./engine/pictures.js"
 */

import { inputSize, seen } from "./placement.js";

const WANTED = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 60 } };
const GREY = "rgb(128 128 128)"; // around a letterboxed frame

/** @type {Record<string, string>} What people can do about a camera that doesn't start, by the error's name. */
const REASONS = {
  NotAllowedError: "The camera is not allowed here. Allow it in the browser's settings for this page.",
  NotFoundError: "There is no camera on this device.",
  NotReadableError: "Another program is using the camera.",
};

export class Camera {
  #video;
  #canvas = document.createElement("canvas");
  /** @type {MediaStream | null} */
  #stream = null;
  #front = false;

  /** @param {HTMLVideoElement} video */
  constructor(video) {
    this.#video = video;
  }

  get running() {
    return this.#stream !== null;
  }

  /** Whether people see themselves in it, and expect a mirror. */
  get mirrored() {
    return this.running && this.#stream?.getVideoTracks()[0].getSettings().facingMode !== "environment";
  }

  /** Whether there is another to change to; known once one has been allowed. */
  async several() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }

  /** @param {boolean} [other]  the one on the device's other side */
  async start(other = false) {
    if (!navigator.mediaDevices) throw new Error("Browsers give the camera to pages of https:// addresses only.");
    this.stop();
    if (other) this.#front = !this.#front;
    const facingMode = this.#front ? "user" : "environment";
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { ...WANTED, facingMode }, audio: false });
    } catch (e) {
      const { name, message } = /** @type {Error} */ (e);
      throw new Error(REASONS[name] ?? `The camera doesn't start: ${message}`);
    }
    const stream = (this.#video.srcObject = this.#stream);
    try {
      await this.#video.play();
    } catch (e) {
      if (this.#stream === stream) throw e; // else it was stopped meanwhile
    }
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** Resolves when there is a frame that wasn't there before. */
  next() {
    return new Promise((resolve) => {
      if ("requestVideoFrameCallback" in this.#video) this.#video.requestVideoFrameCallback(resolve);
      else requestAnimationFrame(resolve);
    });
  }

  /**
   * What the camera shows now, in the network's size.
   * @param {Preprocess} how
   * @returns {{picture: Picture, width: number, height: number}}
   */
  frame(how) {
    const { videoWidth: width, videoHeight: height } = this.#video;
    const [rows, columns] = inputSize(how);
    if (this.#canvas.width !== columns || this.#canvas.height !== rows)
      [this.#canvas.width, this.#canvas.height] = [columns, rows];
    const context = this.#canvas.getContext("2d", { willReadFrequently: true, alpha: false });
    if (!context) throw new Error("This browser gives no canvas to read pixels from.");
    const { x, y, width: wide, height: high } = seen(how, width, height);
    if (how.framing === "letterbox") {
      context.fillStyle = GREY;
      context.fillRect(0, 0, columns, rows);
    }
    context.imageSmoothingQuality = "medium";
    context.setTransform(columns / wide, 0, 0, rows / high, (-x * columns) / wide, (-y * rows) / high);
    context.drawImage(this.#video, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
    return { picture: context.getImageData(0, 0, columns, rows), width, height };
  }
}
