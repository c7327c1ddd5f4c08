"""Copies of shards, to be damaged."""

import json

import numpy as np

from mobilenets import files


def copy(written, folder):
    folder.mkdir()
    for p in written.out.iterdir():
        (folder / p.name).write_bytes(p.read_bytes())
    return folder


def damage(folder, change):
    """The val table of the shards in `folder` with `change`d columns, or bytes; the index says so."""
    table, index = folder / "val.npz", json.loads((folder / "index.json").read_text())
    columns = dict(np.load(table))
    content = change(columns)
    if isinstance(content, bytes):
        table.write_bytes(content)
    else:
        np.savez_compressed(table, **columns)
    entry = index["splits"]["val"]["table"]
    entry |= {"bytes": table.stat().st_size, "sha256": files.sha256(table)}
    (folder / "index.json").write_text(json.dumps(index))
