/* What native_web.py times, in a page or in Node: networks in turn, round after round, in milliseconds. */

export async function timed(ort, load, bytes, plan) {
  ort.env.wasm.numThreads = 1;
  const runs = {};
  for (const name of plan.networks)
    for (const precision of ["float32", "int8"]) {
      const file = await bytes(`${name}_${precision}.onnx`);
      const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
      const image = Uint8Array.from({ length: 224 * 224 * 3 }, (_, i) => (i * 7919) % 251);
      runs[`${name} ${precision} onnxruntime-web`] = () =>
        session.run({ [session.inputNames[0]]: new ort.Tensor("uint8", image, [1, 224, 224, 3]) });
      for (const build of plan.builds) {
        const net = await load(await bytes(`${name}_${precision}.mnet`), { build });
        runs[`${name} ${precision} ${build} (${net.isa})`] = async () => net.run(image);
      }
    }
  const times = {};
  for (let round = 0; round <= plan.rounds; round++)
    for (const [name, run] of Object.entries(runs)) {
      const own = [];
      for (let i = 0; i < plan.repeats; i++) {
        const start = performance.now();
        await run();
        own.push(performance.now() - start);
      }
      own.sort((a, b) => a - b);
      if (round) (times[name] ??= []).push(own[own.length >> 1]); // the first round compiles
    }
  return times;
}

if (globalThis.process?.argv?.[2]) {
  const { readFile } = await import("node:fs/promises");
  const folder = process.argv[2];
  const ort = await import(`${folder}/ort/ort.wasm.min.mjs`);
  const { load, bestBuild } = await import(`${folder}/browser/mnet.js`);
  const plan = JSON.parse(await readFile(`${folder}/plan.json`, "utf8"));
  if (bestBuild() !== "relaxed") plan.builds = plan.builds.filter((b) => b !== "relaxed");
  const bytes = async (name) => new Uint8Array(await readFile(`${folder}/${name}`));
  console.log(JSON.stringify(await timed(ort, load, bytes, plan)));
}
