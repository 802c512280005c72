"""The networks: size, initialisation, seeds, and that ReLU after the pool is ReLU before it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lnlsr_lib.models import MODELS, build_model


@pytest.mark.parametrize(
    ("name", "k", "number"),
    [
        ("cnn4", 10, 422_090),
        ("cnn8", 10, 1_639_794),
        ("resnet34", 100, 21_328_292),
        ("resnet50", 1000, 25_557_032),  # torchvision's own
    ],
)
def test_numbers_of_parameters(name, k, number):
    model = build_model(name, k, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("cnn4", (1, 28, 28), 128),
        ("cnn8", (3, 32, 32), 256),
        ("resnet34", (3, 32, 32), 512),
        ("resnet50", (3, 64, 64), 2048),
    ],
)
@pytest.mark.parametrize("k", [2, 17])
def test_shapes(name, shape, width, k):
    model = build_model(name, k, seed=0).eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.features(x)
        logits = model(x)
    assert features.shape == (3, width)
    assert (features >= 0).all()
    assert features.std() > 0
    assert logits.shape == (3, k)
    last = model.fc2 if name.startswith("cnn") else model.fc
    assert torch.equal(logits, last(features))


def test_resnet34_keeps_the_side_of_its_input_in_the_first_stage():
    """CIFAR's stem: 3x3, stride 1, no max-pool."""
    model = build_model("resnet34", 10, seed=0).eval()
    sides = []
    for layer in (model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert sides == [32, 32, 16, 8, 4]
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [
        *(3, 4, 6, 3)
    ]


def test_resnet34_starts_as_the_authors_do_and_resnet50_as_torchvisions():
    stem = build_model("resnet34", 10, seed=0).layer1[0].conv1.weight.detach()
    assert stem.abs().max() <= (6 / 576) ** 0.5  # Kaiming-uniform is bounded
    normal = build_model("resnet50", 10, seed=0).layer1[0].conv2.weight.detach()
    assert normal.abs().max() > 2 * normal.std() * 3**0.5  # Kaiming-normal is not


@pytest.mark.parametrize("training", [True, False])
def test_cnn8_is_three_pairs_of_textbook_blocks(training):
    """Convolution, BatchNorm, ReLU, and a pool after every second block, to the same bits."""
    model = build_model("cnn8", 10, seed=3).train(training)
    h = x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for i in range(6):
        h = F.relu(model.norms[i](model.convs[i](h)))
        h = F.max_pool2d(h, 2) if i in (1, 3, 5) else h
    assert h.shape == (4, 196, 4, 4)
    textbook = model.fc2(F.relu(model.bn(model.fc1(h.flatten(1)))))
    assert torch.equal(model(x), textbook)


@pytest.mark.parametrize("training", [True, False])
def test_relu_after_the_pool_equals_relu_before_it_exactly(training):
    """The textbook order, convolution, BatchNorm, ReLU, pool, gives the same bits."""
    model = build_model("cnn4", 10, seed=3).train(training)
    x = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    h = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 2)
    h = F.max_pool2d(F.relu(model.bn2(model.conv2(h))), 2)
    textbook = model.fc2(F.relu(model.bn3(model.fc1(h.flatten(1)))))
    assert torch.equal(model(x), textbook)


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        ("conv1", (6 / 9) ** 0.5),  # Kaiming-uniform: sqrt(6 / fan_in)
        ("conv2", (6 / 288) ** 0.5),
        ("fc1", (6 / (3136 + 128)) ** 0.5),  # Xavier-uniform: sqrt(6 / (fan_in + fan_out))
        ("fc2", (6 / (128 + 10)) ** 0.5),
    ],
)
def test_initial_weights_fill_their_interval(layer, bound):
    weight = getattr(build_model("cnn4", 10, seed=0), layer).weight.detach()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.95 * bound
    uniform = bound / 3**0.5  # standard deviation
    assert weight.std().item() == pytest.approx(uniform, rel=0.1)


def test_initial_biases_and_batch_norm_are_pytorchs():
    model = build_model("cnn4", 10, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert 0 < module.bias.abs().max() <= fan_in**-0.5
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(1)
    first = build_model(name, 10, seed=5).state_dict()
    torch.manual_seed(2)
    again = build_model(name, 10, seed=5).state_dict()
    other = build_model(name, 10, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if "conv" in key and key.endswith("weight")]
    assert len(drawn) >= 2
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_global_generator_is_untouched():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    build_model("cnn4", 10, seed=2**63 - 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_model_and_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="unknown model 'vgg'; there are: cnn4"):
        build_model("vgg", 10, seed=0)
    with pytest.raises(ValueError, match="num_classes must be >= 2, got 1"):
        build_model("cnn4", 1, seed=0)
