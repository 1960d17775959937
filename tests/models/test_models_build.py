"""What a recipe may write under `model`: the zoo, torchvision, one's own; every mistake and its way out."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.errors import UserError
from swa_cli.models.build_model import ZOO, build

OWN_NETWORKS = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, in_channels, hidden=3):
        super().__init__()
        self.sizes = (in_channels, hidden, num_classes)

class Bare(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden

def everything(**options):
    net = nn.Identity()
    net.options = options
    return net

def broken(num_classes):
    raise TypeError("a bug of the person's own")

def text():
    return "no network"

number = 3
"""


def refusal(name: str, **args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        build(name, num_classes=10, in_channels=3, args=args)
    return caught.value


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of one's own in a folder on the path, as the folder of a recipe is."""
    (tmp_path / "own_networks.py").write_text(OWN_NETWORKS)
    (tmp_path / "own_needs.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("own_networks", "own_needs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


# --- the zoo


def test_unknown_name_suggests_and_lists_the_zoo() -> None:
    """The refusal of a misspelt name is held against the nearest name and the whole list."""
    error = refusal("PreResNet165")
    assert "unknown network 'PreResNet165'" in error.message
    assert "did you mean preresnet164?" in error.hint
    assert all(name in error.hint for name in ZOO)
    assert error.exit_code == 2


@pytest.mark.parametrize("name", ["", "a:b:c", "my networks:Tiny", ":Tiny", "torch.nn:", "..x:Y"])
def test_names_of_no_known_form_are_refused(name: str) -> None:
    """Names that are nowhere are held against the hint that tells the forms of a name."""
    assert "torchvision:NAME, timm:NAME or package.module:Attribute" in refusal(name).hint


def test_unknown_argument_names_the_accepted_ones() -> None:
    """A misspelt argument is held against the suggestion and the list of accepted arguments."""
    error = refusal("wide_resnet", depth=16, widht=2)
    assert "model.args.widht: unknown argument of wide_resnet" in error.message
    assert error.hint == "did you mean width? wide_resnet takes depth, width, dropout"


def test_what_a_name_fixes_is_no_argument() -> None:
    """Arguments that the name already says are held against a refusal, not silently overridden."""
    assert "preresnet20 takes no arguments" in refusal("preresnet20", depth=56).hint
    assert "wide_resnet28x10 takes dropout" in refusal("wide_resnet28x10", width=2).hint


def test_missing_argument_is_named() -> None:
    """A general name without its depth is held against a refusal that names it."""
    assert "model.args.depth: preresnet needs this argument" in refusal("preresnet").message


@pytest.mark.parametrize("name", ["convnet", "torchvision:resnet18", "own_networks:Tiny"])
def test_what_follows_the_dataset_is_no_argument(name: str) -> None:
    """Arguments that the dataset fills in are held against a refusal, for every kind of name."""
    error = refusal(name, num_classes=5)
    assert "model.args.num_classes: this follows the dataset" in error.message
    assert error.hint == "leave num_classes out"


@pytest.mark.parametrize("value", ["32", 0, -1, 2.0, True, None])
def test_counts_are_whole_and_positive(value: object) -> None:
    """Values that are no count are held against a refusal that shows them."""
    assert f"model.args.width: {value!r} is not a whole number" in refusal("convnet", width=value).message


@pytest.mark.parametrize("value", ["0.5", 1, -0.1, False, None, float("nan")])
def test_dropout_is_a_probability(value: object) -> None:
    """Values that are no probability are held against a refusal; 0 and .5 are taken."""
    assert f"model.args.dropout: {value!r} is not a number" in refusal("convnet", dropout=value).message
    for good in (0, 0.5):
        assert build("convnet", num_classes=2, in_channels=1, args={"dropout": good}).dropout.p == good


@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_flags_are_true_or_false(value: object) -> None:
    """Values that are no flag are held against a refusal that shows them."""
    assert f"model.args.batchnorm: {value!r} is not true or false" in refusal("unet", batchnorm=value).message


@pytest.mark.parametrize("depth", [1, 2, 19, 44, 110 - 1])
def test_depths_that_no_preresnet_has(depth: int) -> None:
    """Depths off 6n+2 and 9n+2 are held against a refusal with the formulas."""
    error = refusal("preresnet", depth=depth)
    assert f"no PreResNet of depth {depth}" in error.message
    assert "6n+2" in error.hint
    assert "9n+2" in error.hint


@pytest.mark.parametrize("depth", [1, 4, 27])
def test_depths_that_no_wide_resnet_has(depth: int) -> None:
    """Depths off 6n+4 are held against a refusal with the formula."""
    assert "6n+4" in refusal("wide_resnet", depth=depth, width=1).hint


# --- torchvision


def test_torchvision_network_is_torchvisions_own() -> None:
    """Initial weights are held against torchvision's own constructor under the same seed, bit for bit."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(3)
    ours = build("torchvision:squeezenet1_1", num_classes=10, in_channels=3).state_dict()
    torch.manual_seed(3)
    theirs = squeezenet1_1(weights=None, num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
@pytest.mark.parametrize("in_channels", [1, 4])
def test_torchvision_network_takes_any_channels(name: str, in_channels: int) -> None:
    """Shapes of weights are held against those of the network for three channels: one differs, in C alone."""
    with torch.device("meta"):
        three = build(f"torchvision:{name}", num_classes=6, in_channels=3).state_dict()
    torch.manual_seed(0)
    model = build(f"torchvision:{name}", num_classes=6, in_channels=in_channels)
    other = model.state_dict()
    assert list(other) == list(three)
    differing = {key for key in three if three[key].shape != other[key].shape}
    assert len(differing) == 1
    (key,) = differing
    assert other[key].shape == (three[key].shape[0], in_channels, *three[key].shape[2:])
    assert model.eval()(torch.zeros(2, in_channels, 64, 64)).shape == (2, 6)


def test_new_first_convolution_keeps_the_networks_initialisation() -> None:
    """The spread of ResNet-18's first weights for one channel is held against He's formula."""
    torch.manual_seed(0)
    conv = build("torchvision:resnet18", num_classes=2, in_channels=1).conv1
    assert (conv.in_channels, conv.stride, conv.padding, conv.bias) == (1, (2, 2), (3, 3), None)
    assert conv.weight.std().item() == pytest.approx((2 / (7 * 7 * 64)) ** 0.5, rel=0.06)
    assert isinstance(conv.weight, nn.Parameter)
    assert conv.weight.requires_grad


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_logits_give_logits_alone(name: str) -> None:
    """The output in training mode is held against a tensor (B, K)."""
    with torch.device("meta"):
        model = build(f"torchvision:{name}", num_classes=9, in_channels=3)
        logits = model.train()(torch.zeros(2, 3, 299, 299))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 9)


def test_torchvision_arguments_reach_the_constructor() -> None:
    """An argument of torchvision's constructor is held against its effect."""
    with torch.device("meta"):
        model = build("torchvision:alexnet", num_classes=2, in_channels=3, args={"dropout": 0.25})
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}


def test_mistakes_with_torchvision() -> None:
    """Unknown names, arguments, tasks and pretrained weights are held against a refusal with a way out."""
    error = refusal("torchvision:resnet19")
    assert "no classification network 'resnet19'" in error.message
    assert "did you mean resnet1" in error.hint
    assert "no classification network 'fcn_resnet50'" in refusal("torchvision:fcn_resnet50").message
    assert "widht" in refusal("torchvision:resnet18", widht=2).message
    assert "model.args.weights" in refusal("torchvision:resnet18", weights="DEFAULT").message


def test_none_reaches_the_constructor() -> None:
    """`momentum: null` of one's own network, which for BatchNorm means a plain mean, against its layer."""
    model = build("torch.nn:BatchNorm2d", num_classes=9, in_channels=3, args={"num_features": 3, "momentum": None})
    assert model.momentum is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_no_argument_of_a_library_loads_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, and a pickle, that leave a mark, as every argument that constructors have: a refusal, or a network."""
    mark = tmp_path / "mark"
    (tmp_path / "trap.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Trap: pass\n")
    torch.save({"state_dict": Marking(str(mark))}, tmp_path / "trap.pt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    file = str(tmp_path / "trap.pt")
    for key in arguments_of(name):
        for value in ("trap:Trap", "trap.Trap", file, f"file://{file}", {"file": file, "url": file}, True):
            with contextlib.suppress(UserError), torch.device("meta"):
                build(name, num_classes=9, in_channels=3, args={key: value})
            assert not mark.exists(), (key, value)
    assert "trap" not in sys.modules


class Marking:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def arguments_of(name: str) -> list[str]:
    """Every argument of the classes and functions that make a network of a library."""
    library, _, network = name.partition(":")
    if library == "timm":
        import timm
        from timm.models import _builder, model_entrypoint

        makers = [timm.create_model, model_entrypoint(network), *vars(_builder).values()]
        module = sys.modules[model_entrypoint(network).__module__]
    else:
        import torchvision

        makers = [torchvision.models.get_model_builder(network)]
        module = sys.modules[makers[0].__module__]
    makers += vars(module).values()
    ours = [maker for maker in makers if getattr(maker, "__module__", "").split(".")[0] == library and callable(maker)]
    found = {key for maker in ours for key in inspect.signature(maker).parameters}
    assert len(found) > 20
    return sorted(found - {"self", "num_classes", "in_channels"})


# --- timm


@pytest.mark.parametrize("in_channels", [1, 3])
def test_timm_network_is_timms_own(in_channels: int) -> None:
    """Initial weights are held against timm's own constructor under the same seed, bit for bit."""
    import timm

    torch.manual_seed(3)
    model = build("timm:test_byobnet", num_classes=10, in_channels=in_channels, args={"drop_rate": 0.5})
    torch.manual_seed(3)
    theirs = timm.create_model("test_byobnet", num_classes=10, in_chans=in_channels).state_dict()
    ours = model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert model.eval()(torch.zeros(2, in_channels, 32, 32)).shape == (2, 10)
    assert model.head.drop.p == 0.5


def test_statistics_of_timms_own_batchnorm() -> None:
    """BatchNorm fused with an activation: statistics of one batch are held against torch's with momentum 1."""
    torch.manual_seed(0)
    model = build("timm:test_efficientnet", num_classes=10, in_channels=1, args={"drop_path_rate": 0.0})
    images = torch.randn(64, 1, 32, 32)
    expected = copy.deepcopy(model).train()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    expected(images)
    update = update_batchnorm([images], model)
    assert update.num_layers == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) > 5
    for (name, found), wanted in zip(model.named_buffers(), expected.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("torchvision:vit_b_16", {"image_size": 30}, "Input shape indivisible by patch size!"),
        ("timm:test_vit", {"patch_size": 0}, "ZeroDivisionError"),
        ("timm:test_vit", {"act_layer": "rule"}, "KeyError 'rule'"),
        ("timm:test_vit", {"norm_layer": 3}, "AssertionError"),
        ("timm:test_resnet", {"block": "basic"}, "AttributeError 'str' object has no attribute 'expansion'"),
    ],
)
def test_what_a_constructor_trips_over_is_refused(name: str, args: dict[str, Any], reason: str) -> None:
    """Values that libraries do not check, against a refusal with the error that they raise and where to look."""
    error = refusal(name, **args)
    assert f"model.args: {name} refuses them: {reason}" in error.message
    assert name.partition(":")[2] in error.hint


def test_mistakes_with_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, arguments, pretrained weights, and no timm at all are held against a refusal with a way out."""
    error = refusal("timm:resnet19")
    assert "timm has no network 'resnet19'" in error.message
    assert "did you mean resnet1" in error.hint
    assert "did you mean resnet18?" in refusal("timm:resnet18.a1_in1k").hint
    assert "model.pretrained=a1_in1k" in refusal("timm:resnet18.a1_in1k").hint
    assert "no network 'hf-hub:timm/resnet18'" in refusal("timm:hf-hub:timm/resnet18").message
    assert "widht" in refusal("timm:resnet18", widht=2).message
    assert "model.pretrained=true" in refusal("timm:resnet18", pretrained=True).hint
    assert "in_chans" in refusal("timm:resnet18", in_chans=3).message
    monkeypatch.setitem(sys.modules, "timm", None)
    error = refusal("timm:resnet18")
    assert "timm:resnet18 needs the package timm" in error.message
    assert error.hint == "pip install 'swa-cli[timm]'"


# --- one's own


@pytest.mark.usefixtures("own")
def test_own_network_gets_what_its_signature_takes() -> None:
    """What constructors receive is held against their signatures: both numbers, none, or all keywords."""
    tiny = build("own_networks:Tiny", num_classes=10, in_channels=2, args={"hidden": 5})
    assert tiny.sizes == (2, 5, 10)
    assert build("own_networks:Bare", num_classes=10, in_channels=2, args={"hidden": 5}).hidden == 5
    options = build("own_networks:everything", num_classes=10, in_channels=2, args={"x": 1}).options
    assert options == {"num_classes": 10, "in_channels": 2, "x": 1}


@pytest.mark.usefixtures("own")
def test_mistakes_with_own_networks() -> None:
    """Wrong halves of a name, wrong arguments and results are held against a refusal that says which."""
    error = refusal("own_network:Tiny")
    assert "cannot import own_network" in error.message
    assert "own_network.py beside the recipe" in error.hint
    error = refusal("own_networks.deeper:Tiny")
    assert "cannot import own_networks.deeper" in error.message
    error = refusal("own_needs:Tiny")
    assert "a_module_that_nobody_has" in error.message
    assert "fix the imports of own_needs" in error.hint
    error = refusal("own_networks:tiny")
    assert "no attribute 'tiny'" in error.message
    assert "did you mean Tiny?" in error.hint
    error = refusal("own_networks:Tiny", hiden=5)
    assert "'hiden'" in error.message
    assert "hidden" in error.hint
    assert "'hidden'" in refusal("own_networks:Bare").message
    assert "not a class or function" in refusal("own_networks:number").message
    assert "returns a str" in refusal("own_networks:text").message


@pytest.mark.usefixtures("own")
def test_errors_inside_own_constructor_pass_through() -> None:
    """A TypeError in a constructor of one's own is held against itself: its traceback is the person's."""
    with pytest.raises(TypeError, match="a bug of the person's own"):
        build("own_networks:broken", num_classes=10, in_channels=3)
