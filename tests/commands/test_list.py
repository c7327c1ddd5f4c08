import subprocess
import sys

import pytest

from mobilenets.arch import cost, published, zoo
from mobilenets.arch.detectors import counting
from mobilenets.commands.list import catalogue, list_networks


def test_every_published_accuracy_is_listed_with_the_networks_own_cost():
    listed = {(e.arch, e.alpha, e.resolution): e for e in catalogue()}
    for name, alphas in published.TOP1.items():
        for alpha, row in alphas.items():
            for resolution, top1 in row.items():
                entry = listed[name, alpha, resolution]
                counted = cost.count(zoo.arch(name, alpha, resolution))
                assert (entry.imagenet_top1, entry.macs, entry.params) == (top1, counted.macs, counted.params)
                assert entry.weight_bytes == 4 * counted.weights == 4 * entry.weight_bytes_int8
    assert {e.arch for e in listed.values()} == set(zoo.EVERY)
    unknown = [k for k, e in listed.items() if e.imagenet_top1 is None and e.arch in zoo.NETWORKS]
    assert unknown == [("v1-cifar", 1.0, 32), ("v2-cifar", 1.0, 32)]


def test_filters():
    assert {e.arch for e in list_networks("small").entries} == {"v3-small", "v3-small-minimalistic"}
    assert {e.arch for e in list_networks("MobileNet_V3_Large").entries} == {"v3-large", "v3-large-minimalistic"}
    best = list_networks(min_top1=75).entries
    assert best
    assert all(e.imagenet_top1 >= 75 for e in best)
    few = list_networks(max_macs_m=50, max_params_m=1).entries
    assert few
    assert all(e.macs <= 50e6 and e.params <= 1e6 for e in few)


@pytest.mark.parametrize(
    ("sort", "key"),
    [("top1", lambda e: -(e.imagenet_top1 or 0)), ("macs", lambda e: e.macs), ("params", lambda e: e.params)],
)
def test_sorting(sort, key):
    keys = [key(e) for e in list_networks(sort=sort).entries]
    assert keys == sorted(keys)
    assert len(set(keys)) > 20


def test_the_command(command):
    ran = command("list", "v4")
    assert ran.code == 0
    assert "v4-hybrid-l" in ran.out
    assert "82.9" in ran.out
    assert len(command("list", "--json").json) == len(catalogue())
    ran = command("list", "resnet")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "unknown network 'resnet'" in ran.err


def test_detectors(command):
    listed = list_networks(detectors=True).entries
    assert {e.detector for e in listed} == set(counting.NAMES)
    ours = next(e for e in listed if e.detector == "ssdlite-torchvision")
    assert (ours.backbone, ours.coco_map, ours.params, ours.macs) == ("v3-large", 21.3, 3_440_060, 583_171_904)
    assert {e.backbone for e in list_networks("v2", detectors=True).entries} == {"v2"}
    best = list_networks(detectors=True, sort="top1", max_macs_m=1300).entries
    assert [e.coco_map for e in best] == sorted((e.coco_map for e in best), reverse=True)
    assert all(e.macs <= 1.3e9 for e in best)
    printed = command("list", "--detectors").out
    assert "faster-rcnn-fpn" in printed
    assert "mask-rcnn" in command("list").out
    assert command("list", "ssd-fpnlite", "--detectors", "--json").json[1]["coco_map"] == 28.2
    for wrong, said in ((("sdd",), "unknown detector 'sdd'"), (("--weights",), "not both")):
        ran = command("list", "--detectors", *wrong)
        assert ran.code == 2
        assert said in ran.err


@pytest.mark.parametrize(
    "arguments", [["list"], ["cost", "v4-hybrid-l"], ["reproduce", "v1-models"], ["explain", "v1"]]
)
def test_no_torch_is_imported(arguments):
    code = f"import sys; from mobilenets import cli; cli.run({arguments!r}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False")
