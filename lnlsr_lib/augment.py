"""Augmentation of uint8 images, a batch at a time, on the device where they lie.

Random crop after padding, then horizontal flip, then rotation. Each only says which pixel of the
image an output pixel comes from, so the three together are one gather. What is random is drawn once
for an epoch, on the CPU, and batches index into it. Given the same draws, the result equals that of
torchvision on PIL images bit for bit, on every device: PIL's nearest rotation is integer
arithmetic, and so is this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, StrictBool
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "Draws"]


class Draws(NamedTuple):
    """What was drawn for each of N samples; made by :meth:`Augmentation.draw`.

    Attributes:
        top, left: the crop's corner in the padded image, (N,), int64, in [0, 2 * padding].
        flip: whether the image is mirrored, (N,), bool.
        angle: degrees counter-clockwise, (N,), from [-degrees, degrees], rounded to float32.
        turn: the rotation by ``angle`` as PIL writes it, (N, 6), int64: output pixel (x, y) comes
            from x' = (t0 x + t1 y + t2) >> 16 and y' = (t3 x + t4 y + t5) >> 16.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    angle: Tensor
    turn: Tensor


def fixed_point_turn(angle: Tensor, height: int, width: int) -> Tensor:
    """The map from output to source pixels of a rotation around the centre, in 16.16 fixed point.

    With c = cos(angle), s = sin(angle), and pixels taken at their centres,
    x' = c (x - (W-1)/2) - s (y - (H-1)/2) + W/2 and y' = s (x - (W-1)/2) + c (y - (H-1)/2) + H/2;
    the six coefficients are multiplied by 2^16 and rounded half up, as PIL does.

    Args:
        angle: degrees counter-clockwise, (N,), floating, on the CPU: not every device has float64.
        height, width: H and W.

    Returns:
        (N, 6), int64.
    """
    radians = angle.double().deg2rad()
    c, s = radians.cos(), radians.sin()
    x, y = (width - 1) / 2, (height - 1) / 2
    real = torch.stack([c, -s, width / 2 - c * x + s * y, s, c, height / 2 - s * x - c * y], dim=1)
    return (real * 65536 + 0.5).floor().long()


@dataclass(frozen=True)
class Augmentation:
    """Random crop, then horizontal flip, then rotation; what is left at its default does nothing.

    As torchvision's ``RandomCrop(size, padding)``, ``RandomHorizontalFlip()`` and
    ``RandomRotation(degrees)`` on PIL images: padded and uncovered pixels are black, rotation takes
    the nearest pixel, around the centre, and keeps the size.

    Attributes:
        padding: black pixels added on every side before the crop, >= 0.
        flip: mirror left and right with probability 1/2.
        degrees: the largest angle, in [0, 180]; 0 for no rotation.

    Raises:
        ValueError: a parameter of another type or outside its range.

    Source of what is used where: the authors' code.
    """

    padding: Annotated[int, Field(ge=0, strict=True)] = 0
    flip: StrictBool = False
    degrees: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draw for images of ``shape``: every sample independently, each quantity uniformly.

        A sample's draws do not depend on how many samples come after it, and none of them depends
        on whether the others are switched on.

        Args:
            shape: (N, C, H, W), as ``images.shape``; padding < min(H, W), as otherwise a crop could
                be all black.
            generator: a CPU generator; the draws come from it alone.

        Returns:
            The draws, on the CPU, for ``N`` samples.

        Raises:
            ValueError: a shape of another rank, or sides no longer than the padding.
        """
        if len(shape) != 4:
            raise ValueError(f"shape must be (N, C, H, W), got {tuple(shape)}")
        size, _, height, width = shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"padding must be less than the images' sides, {height} and {width}, "
                f"got {self.padding}"
            )
        uniform = torch.rand(size, 4, dtype=torch.float64, generator=generator)
        corner = (uniform[:, :2] * (2 * self.padding + 1)).long()
        angle = ((2 * uniform[:, 3] - 1) * self.degrees).float()  # torchvision's are float32
        flip = (uniform[:, 2] < 0.5) & self.flip
        turn = fixed_point_turn(angle, height, width)
        return Draws(corner[:, 0], corner[:, 1], flip, angle, turn)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """The augmented images; nothing is asked of the device.

        Args:
            images: (B, C, H, W), uint8.
            draws: theirs, B of them, made for their sides, on their device; for ``images[index]``
                ``Draws(*(drawn[index] for drawn in draws))``.

        Returns:
            (B, C, H, W), uint8, contiguous; ``images`` is left as it was.

        Raises:
            TypeError: images that are no uint8 tensor.
            ValueError: images of another rank, or not as many as the draws.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a uint8 tensor, got {got}")
        if images.ndim != 4 or len(images) != len(draws.top):
            wanted = f"(B, C, H, W) with B = {len(draws.top)} as the draws"
            raise ValueError(f"images must be {wanted}, got shape {tuple(images.shape)}")
        _, channels, height, width = images.shape
        x = torch.arange(width, device=images.device)  # (W,)
        y = torch.arange(height, device=images.device)[:, None]  # (H, 1)
        inside = None
        if self.degrees:  # an output pixel of the rotation, as a pixel of the flipped crop
            t = draws.turn[..., None, None].unbind(1)  # six of (B, 1, 1)
            x, y = (t[0] * x + t[1] * y + t[2]) >> 16, (t[3] * x + t[4] * y + t[5]) >> 16
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # (B, H, W)
        flip, top, left = (v[:, None, None] for v in (draws.flip, draws.top, draws.left))
        x = torch.where(flip, width - 1 - x, x) + left  # now of the padded image
        y = y + top
        margin = self.padding + 1  # one more than is cropped from: the first pixel is always black
        source = (y + 1) * (width + 2 * margin) + x + 1  # (B, H, W)
        if inside is not None:
            source = torch.where(inside, source, 0)
        padded = F.pad(images, (margin,) * 4).flatten(2)  # (B, C, pixels)
        index = source.flatten(1)[:, None].expand(-1, channels, -1)
        return padded.gather(2, index).view(images.shape)
