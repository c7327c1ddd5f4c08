/**
 * The page without a network: see sw.js.
 *
 * @module
 */

/**
 * Keep the page and these files; whether that was done.
 * @param {string[]} files
 * @returns {Promise<boolean>}
 */
export async function kept(files) {
  if (!("serviceWorker" in navigator)) return false; // as on pages of http:// addresses
  await navigator.serviceWorker.register("./sw.js");
  const { active } = await navigator.serviceWorker.ready;
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(true);
    active?.postMessage({ keep: files }, [port2]);
  });
}
