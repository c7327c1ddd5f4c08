/* Runs cases of test_web.py, in Node (`node driver.mjs FOLDER`) or in a page that imports it. */

export async function answers(mnet, bytes, cases) {
  const made = [];
  for (const c of cases)
    try {
      if (c.fit) {
        const data = await bytes(c.rgba);
        made.push([...mnet.fit({ width: c.width, height: c.height, data }, c.fit)]);
        continue;
      }
      const net = await mnet.load(await bytes(c.model), { build: c.build, threads: c.threads });
      const outputs = c.picture
        ? (await net.predict({ width: c.width, height: c.height, data: await bytes(c.picture) })).outputs
        : net.run(await bytes(c.images));
      const values = Object.fromEntries(Object.entries(outputs).map(([name, v]) => [name, [...v]]));
      made.push({ isa: net.isa, threads: net.threads, labels: net.labels, outputs: values });
      net.close();
    } catch (e) {
      made.push({ error: `${e.name}: ${e.message}` });
    }
  return { best: mnet.bestBuild(), made };
}

if (globalThis.process?.argv?.[2]) {
  const { readFile, writeFile } = await import("node:fs/promises");
  const folder = process.argv[2];
  const bytes = async (name) => new Uint8Array(await readFile(`${folder}/${name}`));
  const cases = JSON.parse(await readFile(`${folder}/cases.json`, "utf8"));
  const mnet = await import(`${folder}/browser/mnet.js`);
  await writeFile(`${folder}/answers.json`, JSON.stringify(await answers(mnet, bytes, cases)));
}
