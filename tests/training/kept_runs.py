"""What a run's folder holds."""

import csv


def rows(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def weights(out):
    return (out / "float" / "weights.safetensors").read_bytes()


def leftovers(out):
    return [p for p in out.rglob("*") if ".tmp." in p.name or ".old." in p.name]
