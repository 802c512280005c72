"""The paper's networks: ``features(x)`` gives the last hidden layer, ``forward(x)`` the logits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["CNN4", "CNN8", "MODELS", "build_model"]


class _NormPool(torch.autograd.Function):
    """In training: max_pool2d(batch_norm(x), 2) for weight >= 0, from max_pool2d(x, 2).

    BatchNorm is then an increasing line in each channel, so it commutes with the pool. With the
    statistics of all of x, the line is drawn through a quarter of the elements, and back. What the
    statistics pass back to x, -(dbias + x^ dweight) weight / (M std) with x^ = (x - mean) / std
    and M elements in a channel, is a line in x as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        assert norm.momentum is not None
        mean, var = torch.batch_norm_update_stats(
            x, norm.running_mean, norm.running_var, norm.momentum
        )
        pooled, index = F.max_pool2d(x, 2, return_indices=True)
        ctx.save_for_backward(x, pooled, index, weight, mean, var)
        ctx.eps = norm.eps
        return F.batch_norm(pooled, mean, var, weight, bias, eps=norm.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, pooled, index, weight, mean, var = ctx.saved_tensors
        chosen, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, pooled, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        inverse = (var + ctx.eps).rsqrt()
        scale = -weight * inverse * weight.numel() / x.numel()
        to_x = F.max_unpool2d(chosen, index, [2, 2], output_size=x.shape[-2:])
        to_x += F.batch_norm(  # scale (to_bias + x^ to_weight)
            x, mean, torch.ones_like(var), scale * inverse * to_weight, scale * to_bias, eps=0.0
        )
        return to_x, to_weight, to_bias, None


def norm_pool(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """``F.max_pool2d(norm(x), 2)``, on the CPU faster, and equal to it up to rounding.

    Args:
        x: (N, C, H, W), floating.
        norm: BatchNorm2d over C channels, with weights and running statistics.

    Returns:
        (N, C, H // 2, W // 2), of x's dtype.
    """
    here = norm.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if here and bool((norm.weight >= 0).all()):
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        pooled: Tensor = _NormPool.apply(x, norm.weight, norm.bias, norm)
        return pooled
    return F.max_pool2d(norm(x), 2)


class _CNN(nn.Module):
    """What the two share: ``features`` (N, D) of images, and a last linear layer ``fc2``."""

    features: Callable[[Tensor], Tensor]
    fc2: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, K)."""
        logits: Tensor = self.fc2(self.features(x))
        return logits


class CNN4(_CNN):
    """The 4-layer CNN of MNIST, 422,090 parameters at K = 10.

    Two blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pool (1 -> 32 -> 64 channels), then
    3136 -> 128 -> K. ReLU comes after the pool here: the two commute exactly, and the pool leaves a
    quarter of the elements. The first linear layer sees them flattened as (H, W, C), which of a
    channels_last tensor takes no copy; its weights are drawn as for (C, H, W) and reordered.

    Args:
        num_classes: K >= 2.
        side: of the images, in pixels, >= 4.

    Source: the paper, appendix B, by its reference to Ma et al. 2020; layer sizes and
    initialisation as in the authors' code.
    """

    def __init__(self, num_classes: int = 10, side: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * (side // 4) ** 2, 128)
        self.bn3 = nn.BatchNorm1d(128)
        self.fc2 = nn.Linear(128, num_classes)
        initialise(self)
        channels_last(self.fc1, 64)

    def features(self, x: Tensor) -> Tensor:
        """The activations after the last ReLU, (N, 128); ``x`` is (N, 1, 28, 28), floating."""
        x = F.relu(norm_pool(self.conv1(x), self.bn1))  # (N, 32, 14, 14)
        x = F.relu(norm_pool(self.conv2(x), self.bn2))  # (N, 64, 7, 7)
        return F.relu(self.bn3(self.fc1(flatten(x))))


class CNN8(_CNN):
    """The 8-layer CNN of CIFAR-10, 1,639,794 parameters at K = 10.

    Three times two blocks of 3x3 convolution, BatchNorm and ReLU, and a 2x2 max-pool (3 -> 64 ->
    128 -> 196 channels), then 3136 -> 256 -> K. The ReLU before a pool comes after it here, and
    the flattening is by (H, W, C), as in :class:`CNN4`.

    Args:
        num_classes: K >= 2.
        side: of the images, in pixels, >= 8.

    Source: the paper, appendix B; layer sizes and initialisation as in the authors' code.
    """

    def __init__(self, num_classes: int = 10, side: int = 32) -> None:
        super().__init__()
        pairs = list(pairwise((3, 64, 64, 128, 128, 196, 196)))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.fc1 = nn.Linear(196 * (side // 8) ** 2, 256)
        self.bn = nn.BatchNorm1d(256)
        self.fc2 = nn.Linear(256, num_classes)
        initialise(self)
        channels_last(self.fc1, 196)

    def features(self, x: Tensor) -> Tensor:
        """The activations after the last ReLU, (N, 256); ``x`` is (N, 3, 32, 32), floating."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            assert isinstance(norm, nn.BatchNorm2d)
            x = conv(x)
            x = F.relu(norm_pool(x, norm) if i % 2 else norm(x))
        return F.relu(self.bn(self.fc1(flatten(x))))  # from (N, 196, 4, 4)


def _resnet(block: str, layers: list[int], num_classes: int) -> Any:
    """Torchvision's ResNet of such blocks, with ``features``: what the last linear layer sees.

    Imported here, since torchvision's models take as long to import as PyTorch.
    """
    from torchvision.models import resnet

    class ResNet(resnet.ResNet):  # type: ignore[misc]
        def features(self, x: Tensor) -> Tensor:
            """The pooled activations, (N, D); ``x`` is (N, 3, H, W), floating."""
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            pooled: Tensor = self.avgpool(x)
            return pooled.flatten(1)

    return ResNet(getattr(resnet, block), layers, num_classes=num_classes)


def _resnet34(num_classes: int, side: int = 32) -> nn.Module:
    """ResNet-34 for CIFAR: a 3x3 stem of stride 1 without max-pool; 21,328,292 parameters at
    K = 100. Source: the paper, appendix B; stem and initialisation as in the authors' code."""
    model: nn.Module = _resnet("BasicBlock", [3, 4, 6, 3], num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    initialise(model)
    return model


def _resnet50(num_classes: int, side: int = 224) -> nn.Module:
    """Torchvision's ResNet-50, with its initialisation. Source: the paper, section 3.3."""
    model: nn.Module = _resnet("Bottleneck", [3, 4, 6, 3], num_classes)
    return model


def initialise(model: nn.Module) -> None:
    """Kaiming-uniform (fan-in, ReLU) convolutions and Xavier-uniform linear layers.

    Biases keep PyTorch's default. Source: the authors' code.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


def flatten(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W C): of a channels_last tensor a view, where (N, C H W) is a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def channels_last(linear: nn.Linear, channels: int) -> None:
    """Reorder the columns of a layer that was to see (C, H, W) flattened, for :func:`flatten`."""
    weight = linear.weight.unflatten(1, (channels, -1))  # (O, C, H W)
    linear.weight.copy_(weight.transpose(1, 2).flatten(1))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn4": CNN4,
    "cnn8": CNN8,
    "resnet34": _resnet34,
    "resnet50": _resnet50,
}


def build_model(name: str, num_classes: int, seed: int, side: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU; its weights depend on ``seed`` alone.

    PyTorch's global generator is left as it was.

    Args:
        name: one of ``MODELS``.
        num_classes: K >= 2.
        seed: in [0, 2^63).
        side: of the images, in pixels, a multiple of 8, or of 4 for CNN-4, which halves them
            twice; None for what the network is made for.

    Raises:
        ValueError: an unknown name, K < 2, or a side that is no such multiple.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are: {', '.join(MODELS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    unit = 4 if name == "cnn4" else 8
    if side is not None and (side < unit or side % unit):
        raise ValueError(f"side must be a multiple of {unit}, got {side}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](num_classes) if side is None else MODELS[name](num_classes, side)
