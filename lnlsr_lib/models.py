"""The paper's networks: ``features(x)`` gives the last hidden layer, ``forward(x)`` the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CNN4", "MODELS", "build_model"]


class CNN4(nn.Module):
    """The 4-layer CNN of MNIST, 422,090 parameters at K = 10.

    Two blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pool (1 -> 32 -> 64 channels), then
    3136 -> 128 -> K. ReLU comes after the pool here: the two commute exactly, and the pool leaves a
    quarter of the elements.

    Args:
        num_classes: K >= 2.

    Source: the paper, appendix B, by its reference to Ma et al. 2020; layer sizes and
    initialisation as in the authors' code.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.bn3 = nn.BatchNorm1d(128)
        self.fc2 = nn.Linear(128, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """The activations after the last ReLU, (N, 128); ``x`` is (N, 1, 28, 28), floating."""
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))  # (N, 32, 14, 14)
        x = F.relu(F.max_pool2d(self.bn2(self.conv2(x)), 2))  # (N, 64, 7, 7)
        return F.relu(self.bn3(self.fc1(x.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, K)."""
        logits: Tensor = self.fc2(self.features(x))
        return logits


def initialise(model: nn.Module) -> None:
    """Kaiming-uniform (fan-in, ReLU) convolutions and Xavier-uniform linear layers.

    Biases keep PyTorch's default. Source: the authors' code.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


MODELS: dict[str, Callable[[int], nn.Module]] = {"cnn4": CNN4}


def build_model(name: str, num_classes: int, seed: int) -> nn.Module:
    """A freshly initialised network on the CPU; its weights depend on ``seed`` alone.

    PyTorch's global generator is left as it was.

    Args:
        name: one of ``MODELS``.
        num_classes: K >= 2.
        seed: in [0, 2^63).

    Raises:
        ValueError: an unknown name, or K < 2.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are: {', '.join(MODELS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](num_classes)
