import pytest

from mobilenets.arch import cost, zoo
from mobilenets.errors import UserError
from mobilenets.model.convert.foreign_cost import count_foreign


@pytest.mark.parametrize(
    ("name", "resolution", "macs", "params"),
    [
        ("torchvision:vgg16", 224, 15_470_264_320, 138_357_544),
        ("torchvision:alexnet", 224, 714_188_480, 61_100_840),
        ("torchvision:squeezenet1_0", 224, 818_924_576, 1_248_424),
        ("torchvision:googlenet", 224, 1_498_376_192, 6_624_904),
        ("torchvision:inception_v3", 299, 5_713_216_096, 23_834_568),
    ],
)
def test_the_networks_of_the_papers_tables(name, resolution, macs, params):
    """Parameters as torchvision documents them for its weights; auxiliary heads aside."""
    c = count_foreign(name)
    assert (c.resolution, c.macs, c.params) == (resolution, macs, params)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("torchvision:mobilenet_v2", zoo.arch("v2")),
        ("torchvision:mobilenet_v3_small", zoo.arch("v3-small")),
        ("timm:mobilenetv1_100", zoo.arch("v1")),
        ("timm:mobilenetv2_140", zoo.arch("v2", 1.4)),
        ("timm:mobilenetv3_large_075", zoo.arch("v3-large", 0.75)),
        ("timm:mobilenetv4_conv_small", zoo.arch("v4-conv-s")),
        ("timm:mobilenetv4_conv_medium", zoo.arch("v4-conv-m", resolution=256)),
    ],
)
def test_mobilenets_of_other_libraries_cost_what_ours_do(name, ours):
    theirs, c = count_foreign(name, ours.resolution), cost.count(ours)
    assert (theirs.macs, theirs.params) == (c.macs, c.params)


def test_the_command(command):
    ran = command("cost", "torchvision:squeezenet1_1", "--resolution", 128, "--json")
    assert ran.json["resolution"] == 128
    assert ran.json["params"] == 1_235_496
    assert "macs (M)" in command("cost", "torchvision:squeezenet1_1").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torchvision:vgg166",), "unknown torchvision classifier 'vgg166': did you mean 'vgg16'"),
        (("timm:mobilenetv2_10",), "unknown timm network"),
        (("torchvision:vgg16", "--alpha", "0.5"), "counted as it is"),
        (("torchvision:alexnet", "--resolution", "8"), "can't be counted at 8x8"),
        (("torchvision:",), "unknown torchvision classifier"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, message):
    ran = command("cost", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_what_is_no_classifier_is_refused():
    with pytest.raises(UserError, match="unknown torchvision classifier"):
        count_foreign("torchvision:fasterrcnn_resnet50_fpn")
