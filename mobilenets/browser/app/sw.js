/**
 * Keeps the page for use without a network: all its own files when it is installed; of the engine's builds and of the
 * networks, those that the page has used. A site of another version is another cache.
 */

const here = /** @type {any} */ (self);
here.importScripts("./files.js");
/** @type {{version: string, files: string[]}} */
const SITE = here.SITE;
const PREFIX = `mobilenets ${here.registration.scope} `;
const NAME = PREFIX + SITE.version;

here.addEventListener("install", (/** @type {any} */ event) => {
  const all = SITE.files.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(all)).then(() => here.skipWaiting()));
});

here.addEventListener("activate", (/** @type {any} */ event) => {
  const others = caches.keys().then((names) => names.filter((name) => name.startsWith(PREFIX) && name !== NAME));
  event.waitUntil(
    others.then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => here.clients.claim()),
  );
});

here.addEventListener("message", (/** @type {any} */ event) => {
  const { keep } = event.data;
  const kept = caches.open(NAME).then(async (cache) => {
    for (const file of keep) if (!(await cache.match(file))) await cache.add(file);
  });
  event.waitUntil(kept.then(() => event.ports[0].postMessage("kept")));
});

here.addEventListener("fetch", (/** @type {any} */ event) => {
  if (event.request.method !== "GET") return;
  const found = caches.open(NAME).then((cache) => cache.match(event.request, { ignoreSearch: true }));
  event.respondWith(found.then((answer) => answer ?? fetch(event.request)));
});
