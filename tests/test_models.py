"""The networks: size, initialisation, seeds, and that ReLU after the pool is ReLU before it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lnlsr_lib.models import MODELS, build_model


def test_cnn4_has_the_papers_number_of_parameters():
    model = build_model("cnn4", 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 422_090


@pytest.mark.parametrize("k", [2, 10, 17])
def test_shapes(k):
    model = build_model("cnn4", k, seed=0).eval()
    x = torch.randn(3, 1, 28, 28)
    features = model.features(x)
    assert features.shape == (3, 128)
    assert (features >= 0).all()
    logits = model(x)
    assert logits.shape == (3, k)
    assert torch.equal(logits, model.fc2(features))


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
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc2.weight"], other["fc2.weight"])


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
