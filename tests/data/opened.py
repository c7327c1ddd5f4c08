"""What tests of data share."""

import zipfile


def zipped(folder, path, prefix="", folders=False):
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*")):
            if p.is_file():
                z.write(p, prefix + p.relative_to(folder).as_posix())
            elif folders:
                z.writestr(prefix + p.relative_to(folder).as_posix() + "/", "")
    return path


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}
