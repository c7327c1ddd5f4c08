/**
 * A network in a worker of its own, as the page speaks to it.
 *
 * @import {Card} from "./engine/mnet.js"
 * @import {Picture} from "./engine/pictures.js"
 * @import {Opened, Request, Seen, Source} from "./worker.js"
 */

const begun = () => new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

/** @type {Worker | null} The first one's, which begins while the page does. */
let early = begun();

export class Network {
  #worker = early ?? begun();
  /** @type {Map<number, {resolve: (said: any) => void, reject: (e: Error) => void}>} */
  #waiting = new Map();
  #asked = 0;
  /** @type {Card} */
  card;
  engine = "";
  /** @type {string[]} What it took besides the page. */
  fetched = [];

  /**
   * @param {Source} source
   * @returns {Promise<Network>}
   */
  static async open(source) {
    const made = new Network();
    try {
      /** @type {Opened} */
      const { card, engine, fetched } = await made.#ask({ open: { file: source.file, looks: source.looks } });
      made.card = card;
      made.engine = engine;
      made.fetched = [...fetched, source.file];
      return made;
    } catch (e) {
      made.close();
      throw e;
    }
  }

  constructor() {
    early = null;
    this.card = /** @type {Card} */ ({}); // until it is open
    this.#worker.onmessage = ({ data: [id, said, wrong] }) => {
      const asked = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (wrong) asked?.reject(new Error(wrong));
      else asked?.resolve(said);
    };
    this.#worker.onerror = (e) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(e.message || "the worker can't be loaded"));
      this.#waiting.clear();
    };
  }

  /**
   * @param {Request} request
   * @param {Transferable[]} [given]  what goes over to the worker for good
   * @returns {Promise<any>}
   */
  #ask(request, given = []) {
    return new Promise((resolve, reject) => {
      this.#waiting.set(++this.#asked, { resolve, reject });
      this.#worker.postMessage([this.#asked, request], given);
    });
  }

  /**
   * What it says of a photo, resized as it is in training.
   * @param {ImageBitmap} photo  given away
   * @param {boolean} look
   * @returns {Promise<Seen>}
   */
  photo(photo, look) {
    return this.#ask({ photo, look }, [photo]);
  }

  /**
   * What it says of a frame in the network's own size; width and height are the camera's.
   * @param {Picture} picture  given away
   * @param {number} width
   * @param {number} height
   * @param {boolean} look
   * @returns {Promise<Seen>}
   */
  frame(picture, width, height, look) {
    const { data } = picture;
    const small = { width: picture.width, height: picture.height, data };
    return this.#ask({ frame: { picture: small, width, height }, look }, [data.buffer]);
  }

  close() {
    this.#worker.terminate();
  }
}
