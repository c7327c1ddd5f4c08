"""The networks before and beside MobileNets, counted: exactly what their papers' public builders are."""

import json
from pathlib import Path

import pytest

from mobilenets.arch import cost, spec, zoo
from mobilenets.arch.operations import Op, windows
from mobilenets.arch.row_types import ROW_TYPES, row_from_json
from mobilenets.arch.rows_branches import Branches, Step, pooling
from mobilenets.arch.rows_units import GroupedShuffleUnit
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError

# Macs and trainable parameters of torchvision's and timm's networks, as torch.utils.flop_counter counts them
# (tests/model/test_other_networks.py counts our modules again): network, alpha, macs, params.
GOLDEN = [
    (name, float(alpha), int(macs), int(params))
    for name, alpha, macs, params in (
        line.split() for line in (Path(__file__).parent / "golden_others.txt").read_text().splitlines()
    )
]


@pytest.mark.parametrize(("name", "alpha", "macs", "params"), GOLDEN)
def test_macs_and_params_are_torchvisions_and_timms(name, alpha, macs, params):
    counted = cost.count(zoo.arch(name, alpha))
    assert (counted.macs, counted.params) == (macs, params)


@pytest.mark.parametrize(
    ("name", "macs_m"),
    [("shufflenet-v1-g1", 143), ("shufflenet-v1-g2", 140), ("shufflenet-v1", 137), ("shufflenet-v1-g4", 133),
     ("shufflenet-v1-g8", 137)],
)  # fmt: skip
def test_shufflenets_macs_are_its_papers(name, macs_m):
    """Table 1's complexity, which leaves the classifier out."""
    rows = cost.count(zoo.arch(name)).rows
    assert round(sum(r.macs for r in rows if r.layer != "classifier") / 1e6) == macs_m


@pytest.mark.parametrize(
    ("name", "alpha", "numbers"),
    [
        ("v1-toeplitz", 1.0, 2 * 4 * 1024), ("v1-toeplitz", 0.25, 4 * 2 * 4 * 256),  # a block of 1024, or four of 256
        ("v1-fastfood", 1.0, 3 * 1024), ("v1-fastfood", 0.25, 4 * 3 * 256), ("v1-fastfood", 0.75, 3 * 1024),
    ],
)  # fmt: skip
def test_a_classifier_of_a_few_vectors(name, alpha, numbers):
    """Its numbers are those of the papers' matrices; what it costs to run is the whole matrix's."""
    dense, counted = cost.count(zoo.arch("v1", alpha)), cost.count(zoo.arch(name, alpha))
    assert counted.rows[-1].params == numbers + 1000
    assert counted.macs == dense.macs
    assert counted.params - counted.rows[-1].params == dense.params - dense.rows[-1].params


def test_every_other_network_is_counted_here_or_by_its_paper():
    ours = {"shufflenet-v1", "flattened", "factorized", "v1-toeplitz", "v1-fastfood"} | {
        f"shufflenet-v1-g{g}" for g in (1, 2, 4, 8)
    }
    assert {name for name, *_ in GOLDEN} | ours == set(zoo.OTHERS)


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_others_survive_json_and_other_widths(name):
    network = zoo.network(name)
    for alpha in (*network.alphas, 0.6):
        arch = spec.scale(network, alpha, None, 5)
        again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
        assert (again, again.ops, again.digest) == (arch, arch.ops, arch.digest)
    assert cost.count(spec.scale(network, 0.5)).macs < cost.count(spec.scale(network)).macs


def test_every_type_of_row_is_in_the_zoo():
    used = {type(row).__name__ for n in zoo.EVERY.values() for row in (*n.rows, *n.head)}
    assert used == set(ROW_TYPES)


def test_nothing_is_chosen_among_others_by_itself():
    from mobilenets.deploy.choose import grid

    assert not {a.name for a in grid(10)} & set(zoo.OTHERS)


def test_an_input_may_be_too_small():
    with pytest.raises(UserError, match=r"an input of 160x160 is too small for this network: .* at blocks\.18\.conv"):
        cost.count(zoo.arch("vgg16", resolution=160))


@pytest.mark.parametrize("side", range(3, 12))
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 1)])
def test_windows_over_the_edge_are_pytorchs(side, kernel, stride, pad):
    import torch

    for ceil in (False, True):
        expected = torch.nn.functional.max_pool1d(torch.zeros(1, 1, side), kernel, stride, pad, ceil_mode=ceil)
        assert windows(side, 2 * pad, kernel, stride, ceil, pad) == expected.shape[2]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), "without a step"),
        (({"name": "a", "channels": 8, "reads": "b"},), "reads 'b'"),
        (({"name": "a", "channels": 8}, {"name": "a", "channels": 8}), "is there twice"),
        (({"name": "a", "channels": 8, "pooling": "max"},), "a convolution or a pooling"),
        (({"name": "a", "channels": 1 << 20},), "up to 65536"),
        (({"name": "../a", "channels": 8},), "a step called"),
        (({"name": "a", "channels": 8, "kernel": 0},), "a step of"),
    ],
)
def test_branches_that_are_none(steps, said):
    with pytest.raises(UserError, match=said):
        row_from_json({"type": "Branches", "steps": list(steps)})


def test_channels_of_a_shuffle_unit_fit_its_groups():
    for width in (0.13, 0.5, 0.77):
        row = GroupedShuffleUnit(240, groups=3).scaled(lambda c, w=width: int(c * w))
        assert row.channels % 12 == 0


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_every_width_is_a_network_and_wider_costs_more(name):
    macs = [cost.count(zoo.arch(name, alpha)).macs for alpha in (0.01, 0.3, 0.8, 1.2, 2.0)]
    assert macs == sorted(macs)
    assert macs[0] > 0


def test_a_pooling_by_itself_is_one_operation():
    (op,) = pooling(3, 2, ceil=True).ops(16, spec.Scaling("relu"))
    assert op == Op("pool", "maxpool", 16, 16, 3, 2, pads=(0, 0, 0, 0), ceil=True, inputs=("",))
    assert Branches((Step("a", 8), Step("b", 16, 3, reads="a"))).channels == 16


def test_a_map_is_classified_by_what_clips():
    with pytest.raises(UserError, match="a classifier of a map's positions"):
        spec.scale(zoo.network("squeezenet-1.1"), activation="hard_swish")
