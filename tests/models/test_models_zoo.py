"""Our own networks: sizes as published, names as in the paper's code, every image size that is promised."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swa_cli.errors import UserError
from swa_cli.models.build_model import ZOO, build

# Parameters for 10 and for 100 classes, and BatchNorm layers: the networks of the SWA paper.
PUBLISHED = {
    "vgg16": (15_245_130, 15_291_300, 0),
    "vgg16_bn": (15_253_578, 15_299_748, 13),
    "vgg19": (20_554_826, 20_600_996, 0),
    "vgg19_bn": (20_565_834, 20_612_004, 16),
    "preresnet110": (1_146_842, 1_169_972, 109),
    "preresnet164": (1_703_258, 1_726_388, 163),
    "wide_resnet28x10": (36_489_290, 36_546_980, 25),
}
# One network of each kind, small enough to run.
SMALL = {
    "convnet": {},
    "preresnet20": {},
    "preresnet": {"depth": 47},
    "wide_resnet": {"depth": 10, "width": 2, "dropout": 0.3},
    "vgg16_bn": {},
    "speednet": {"width": 8},
}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def num_batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def on_meta(name: str, **options: object) -> nn.Module:
    """Build without memory or time: shapes only."""
    with torch.device("meta"):
        return build(name, **{"num_classes": 10, "in_channels": 3, **options})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_batchnorms_are_the_published_ones(name: str) -> None:
    """Sizes of the paper's networks, held against the published counts for 10 and 100 classes."""
    ten, hundred = on_meta(name), on_meta(name, num_classes=100)
    assert (num_parameters(ten), num_parameters(hundred), num_batchnorms(ten)) == PUBLISHED[name]


@pytest.mark.parametrize(("depth", "num_blocks"), [(20, 3), (32, 5), (38, 6)])
def test_basic_preresnet_has_the_parameters_of_the_formula(depth: int, num_blocks: int) -> None:
    """Sizes of PreResNets of basic blocks, held against a sum over their layers done by hand."""
    expected, num_in = 9 * 3 * 16, 16
    for width in (16, 32, 64):
        for _ in range(num_blocks):
            expected += 2 * num_in + 9 * num_in * width + 2 * width + 9 * width * width
            expected += num_in * width if num_in != width else 0
            num_in = width
    expected += 2 * 64 + 64 * 10 + 10
    model = on_meta("preresnet", args={"depth": depth})
    assert num_parameters(model) == expected
    assert num_batchnorms(model) == 6 * num_blocks + 1 == depth - 1


def test_preresnet20_has_27_hundredths_of_a_million_parameters_and_19_batchnorms() -> None:
    """PreResNet-20 is held against the size that He et al. give for 20 layers, .27 M."""
    model = on_meta("preresnet20")
    assert round(num_parameters(model) / 1e6, 2) == 0.27
    assert num_batchnorms(model) == 19


def test_convnet_has_278890_parameters() -> None:
    """The convnet for one channel and ten classes is held against a sum done by hand."""
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    batchnorms = 2 * (32 + 64 + 64 + 128 + 128)
    assert convolutions + batchnorms + 128 * 10 + 10 == 278_890
    model = on_meta("convnet", in_channels=1)
    assert num_parameters(model) == 278_890
    assert num_batchnorms(model) == 5


def test_a_name_and_its_arguments_spelt_out_are_one_network() -> None:
    """A network's weights by its name are held against those by the general name with arguments."""
    pairs = [
        (on_meta("preresnet56"), on_meta("preresnet", args={"depth": 56})),
        (on_meta("wide_resnet28x10"), on_meta("wide_resnet", args={"depth": 28, "width": 10})),
    ]
    for named, general in pairs:
        shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (named, general)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "vgg19", "vgg19_bn"])
def test_vgg_features_are_those_of_torchvision(name: str) -> None:
    """Names and shapes of a VGG's convolutions, held against torchvision's network of the same name."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).features.state_dict()
    ours = on_meta(name).features.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_vgg_head_is_that_of_the_paper() -> None:
    """The head's layers are held against the paper's code: dropout .5 twice, 512, 512, classes."""
    head = build("vgg16", num_classes=100, in_channels=3).classifier
    kinds = [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in head] == kinds
    assert [head[i].p for i in (0, 3)] == [0.5, 0.5]
    assert [(head[i].in_features, head[i].out_features) for i in (1, 4, 6)] == [
        (512, 512),
        (512, 512),
        (512, 100),
    ]


def batchnorm_keys(name: str) -> set[str]:
    return {f"{name}.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def test_names_of_preresnet_weights_are_those_of_the_papers_code() -> None:
    """State dict keys of PreResNet-110, held against the names in timgaripov/swa's checkpoints."""
    expected = {"conv1.weight", "fc.weight", "fc.bias"} | batchnorm_keys("bn")
    for stage in (1, 2, 3):
        expected.add(f"layer{stage}.0.downsample.0.weight")
        for block in range(12):
            for i in (1, 2, 3):
                expected.add(f"layer{stage}.{block}.conv{i}.weight")
                expected |= batchnorm_keys(f"layer{stage}.{block}.bn{i}")
    assert set(on_meta("preresnet110").state_dict()) == expected


def test_names_of_wide_resnet_weights_are_those_of_the_papers_code() -> None:
    """State dict keys of WideResNet-28x10, held against the names in timgaripov/swa's checkpoints."""
    convolutions = {"conv1", "linear"}
    expected = batchnorm_keys("bn1")
    for stage in (1, 2, 3):
        convolutions.add(f"layer{stage}.0.shortcut.0")
        for block in range(4):
            for i in (1, 2):
                convolutions.add(f"layer{stage}.{block}.conv{i}")
                expected |= batchnorm_keys(f"layer{stage}.{block}.bn{i}")
    expected |= {f"{name}.{kind}" for name in convolutions for kind in ("weight", "bias")}
    assert set(on_meta("wide_resnet28x10").state_dict()) == expected


@pytest.mark.parametrize("name", ["vgg16", "preresnet110"])
def test_convolutions_start_with_the_spread_of_the_formula(name: str) -> None:
    """Initial weights of convolutions, held against normal(0, sqrt(2 / (k k out))); biases are 0."""
    torch.manual_seed(0)
    for module in build(name, num_classes=10, in_channels=3).modules():
        if isinstance(module, nn.Conv2d):
            k, n = module.kernel_size[0], module.weight.numel()
            std = (2 / (k * k * module.out_channels)) ** 0.5
            # Five standard errors of a standard deviation and of a mean.
            assert abs(module.weight.std().item() / std - 1) < 5 / (2 * n) ** 0.5
            assert abs(module.weight.mean().item() / std) < 5 / n**0.5
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", SMALL)
def test_networks_learn_in_channels_last_and_score_in_eval_mode(name: str) -> None:
    """Training gives logits (B, K) and each trained parameter a gradient; eval is held against its repetition."""
    torch.manual_seed(0)
    model = build(name, num_classes=7, in_channels=3, args=SMALL[name]).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    logits = model.train()(images)
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_is_kept_and_changes_no_score(name: str) -> None:
    """Outputs of each layer stay channels_last; the logits are held against the same network in NCHW."""
    torch.manual_seed(0)
    model = build(name, num_classes=7, in_channels=3, args=SMALL[name]).eval()
    images = torch.randn(2, 3, 32, 32)
    broken: list[str] = []

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            broken.append(str(module))

    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        for module in model.modules():
            module.register_forward_hook(watch)
        logits = model(images.to(memory_format=torch.channels_last))
    assert not broken
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=12)
@given(
    height=st.integers(8, 28),
    width=st.integers(8, 28),
    in_channels=st.integers(1, 4),
    num_classes=st.integers(2, 12),
)
def test_convnet_takes_every_size(height: int, width: int, in_channels: int, num_classes: int) -> None:
    """Logits of a small convnet are held against the shape (B, K) for every image of 8 x 8 to 28 x 28."""
    args = {"width": 4, "dropout": 0.5}
    model = build("convnet", num_classes=num_classes, in_channels=in_channels, args=args)
    images = torch.zeros(2, in_channels, height, width)
    for training in (True, False):
        assert model.train(training)(images).shape == (2, num_classes)


@pytest.mark.parametrize("name", ["preresnet20", "wide_resnet"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 28, 20), (2, 48, 48)])
def test_residual_networks_take_every_size(name: str, channels: int, height: int, width: int) -> None:
    """Logits of the residual networks are held against (B, K) for images other than 32 x 32."""
    model = build(name, num_classes=5, in_channels=channels, args=SMALL[name])
    assert model(torch.zeros(2, channels, height, width)).shape == (2, 5)


def test_vgg_takes_larger_images_and_refuses_smaller_ones() -> None:
    """A VGG on 33 x 64 pixels is held against (B, K); on 28 x 28 it says what to do."""
    model = on_meta("vgg16")
    assert model(torch.zeros(2, 3, 33, 64, device="meta")).shape == (2, 10)
    with pytest.raises(UserError, match="at least 32 x 32 pixels, got 28 x 28") as caught:
        model(torch.zeros(2, 3, 28, 28, device="meta"))
    assert "convnet" in caught.value.hint


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """Two builds under one seed are held against each other bit for bit; another seed differs."""
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build("preresnet20", num_classes=10, in_channels=3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_names_lists_the_zoo() -> None:
    """The list of names is held against the networks that are promised."""
    general = {"convnet", "preresnet", "preresnet20", "preresnet56", "speednet", "unet", "wide_resnet"}
    assert set(ZOO) == general | set(PUBLISHED)
