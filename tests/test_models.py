"""The networks: size, initialisation, seeds, and that they are the textbook's."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lnlsr_lib.models import (
    MODELS,
    _NormPool,
    build_model,
    channels_last,
    flatten,
    norm_pool,
)


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


def textbook(name, x, model):
    """Convolution, BatchNorm, ReLU, pool; flattened as (C, H, W); with the weights of ``model``."""
    if name == "cnn4":
        h = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 2)
        h = F.max_pool2d(F.relu(model.bn2(model.conv2(h))), 2)
    else:
        h = x
        for i in range(6):
            h = F.relu(model.norms[i](model.convs[i](h)))
            h = F.max_pool2d(h, 2) if i in (1, 3, 5) else h
    weight = model.fc1.weight.unflatten(1, (-1, h.shape[1])).transpose(1, 2).flatten(1)
    norm = model.bn3 if name == "cnn4" else model.bn
    return model.fc2(F.relu(norm(F.linear(h.flatten(1), weight, model.fc1.bias))))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "shape"), [("cnn4", (4, 1, 28, 28)), ("cnn8", (4, 3, 32, 32))])
def test_small_networks_are_textbook_blocks(name, shape, training, layout):
    """The same outputs, gradients and running statistics as the blocks in their usual order."""
    ours, usual = (build_model(name, 10, seed=3).double().train(training) for _ in range(2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    x = x.contiguous(memory_format=layout)
    outputs = ours(x), textbook(name, x, usual)
    for output in outputs:
        F.cross_entropy(output, torch.tensor([0, 3, 3, 9])).backward()
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for (key, a), b in zip(ours.named_parameters(), usual.parameters(), strict=True):
        # a bias before BatchNorm has no gradient but its rounding
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-14, msg=key)
    for (key, a), b in zip(ours.named_buffers(), usual.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=key)


def test_first_linear_layer_starts_as_for_the_usual_flattening():
    """Its columns are reordered, so that a seed stands for one and the same function."""
    linear = nn.Linear(6 * 4, 5)
    x = torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    usual = linear(x.flatten(1))
    channels_last(linear, 6)
    torch.testing.assert_close(linear(flatten(x)), usual)
    assert linear.weight.requires_grad


# --- BatchNorm and pool in one -------------------------------------------------------------------


def uneven_norm(channels, dtype, low=0.2):
    norm = nn.BatchNorm2d(channels, dtype=None if dtype == torch.bfloat16 else dtype)
    generator = torch.Generator().manual_seed(1)
    nn.init.uniform_(norm.weight, low, 2.0, generator=generator)
    nn.init.uniform_(norm.bias, -1.0, 1.0, generator=generator)
    return norm


def draw(shape, dtype, layout=torch.channels_last):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.contiguous(memory_format=layout).requires_grad_()


def both(x, norm):
    """For norm_pool and for PyTorch's two: output, all gradients, and the buffers."""
    results = []
    for call in (norm_pool, lambda x, norm: F.max_pool2d(norm(x), 2)):
        copied, layer = x.detach().clone().requires_grad_(), copy.deepcopy(norm)
        output = call(copied, layer)
        gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        output.backward(gradient.to(output.dtype))
        gradients = [copied.grad, layer.weight.grad, layer.bias.grad]
        results.append([output.detach(), *gradients, *layer.buffers()])
    return zip(*results, strict=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(8, 5, 6, 4), (4, 3, 7, 9), (2, 1, 2, 2)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_norm_pool_is_batch_norm_and_max_pool(shape, layout, dtype, rtol):
    for ours, pytorchs in both(draw(shape, dtype, layout), uneven_norm(shape[1], dtype)):
        torch.testing.assert_close(ours, pytorchs, rtol=rtol, atol=rtol / 10)


def test_norm_pool_in_bf16_is_as_exact_as_bf16():
    x = draw((16, 4, 8, 8), torch.bfloat16)
    output, to_x, *_ = [ours for ours, _ in both(x, uneven_norm(4, torch.bfloat16))]
    exact = [wide for wide, _ in both(x.detach().double(), uneven_norm(4, torch.bfloat16).double())]
    assert output.dtype == to_x.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), exact[0], rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(to_x.double(), exact[1], rtol=2**-7, atol=2**-7)


def test_norm_pool_passes_gradcheck():
    x = draw((3, 2, 4, 4), torch.float64)
    norm = uneven_norm(2, torch.float64)

    def call(x, weight, bias):
        return _NormPool.apply(x, weight, bias, norm)

    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias), fast_mode=False)


@pytest.mark.parametrize("training", [True, False])
def test_norm_pool_with_a_falling_line_is_left_to_pytorch(training):
    """With a negative weight the largest input is the smallest output."""
    norm = uneven_norm(4, torch.float32, low=-2.0).train(training)
    assert (norm.weight < 0).any()
    for ours, pytorchs in both(draw((4, 4, 4, 4), torch.float32), norm):
        assert torch.equal(ours, pytorchs)


def test_norm_pool_sends_the_gradient_of_ties_to_the_first_as_pytorch_does():
    x = torch.zeros(2, 2, 4, 4)
    x[:, :, 2:] = 1.0
    for ours, pytorchs in both(x, uneven_norm(2, torch.float32)):
        torch.testing.assert_close(ours, pytorchs, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        *(("cnn4", 1, side) for side in (4, 8, 16, 24, 28)),
        *((name, 3, side) for name in ("cnn8", "resnet34") for side in (8, 16, 24)),
    ],
)
def test_networks_for_other_sides(name, channels, side):
    model = build_model(name, 10, seed=0, side=side).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, side, side)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "unit", "side"),
    [("cnn4", 4, 0), ("cnn4", 4, 30), ("cnn8", 8, -8), ("cnn8", 8, 28), ("resnet34", 8, 4)],
)
def test_sides_that_cannot_be_halved_so_often_are_refused(name, unit, side):
    with pytest.raises(ValueError, match=f"side must be a multiple of {unit}, got {side}"):
        build_model(name, 10, seed=0, side=side)


def test_norm_pool_is_in_use_where_it_is_faster():
    norm = uneven_norm(4, torch.float32)
    x = draw((4, 4, 4, 4), torch.float32)
    assert "NormPool" in norm_pool(x, norm).grad_fn.name()
    assert norm.num_batches_tracked == 1
    assert "NormPool" not in norm_pool(x, norm.eval()).grad_fn.name()
    assert "NormPool" not in norm_pool(x.to("meta"), norm.train().to("meta")).grad_fn.name()
