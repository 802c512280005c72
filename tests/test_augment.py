"""Augmentation: given the same draws, torchvision's pixels; and draws that are as announced."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import transforms
from torchvision.transforms import functional as TF

from lnlsr_lib.augment import Augmentation, Draws, fixed_point_turn

CIFAR10 = Augmentation(padding=4, flip=True)
CIFAR100 = Augmentation(padding=4, flip=True, degrees=20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    """Images without a black pixel, so that black is always the fill."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(seed))


def drawn(augmentation, shape, **values):
    """Draws for images of ``shape``, with some of them as wanted."""
    draws = augmentation.draw(shape, generator())
    if "angle" in values:
        values["turn"] = fixed_point_turn(values["angle"], *shape[2:])
    return draws._replace(**values)


def some(draws, index):
    return Draws(*(drawn[index] for drawn in draws))


def on(draws, device):
    return Draws(*(drawn.to(device) for drawn in draws))


def same(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


# --- torchvision as the oracle -------------------------------------------------------------------


def test_every_crop_and_flip_is_that_of_torchvision_on_tensors():
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    top, left, flip = offsets.unbind(1)
    images = noise(len(offsets), 3, 32, 32)
    draws = drawn(CIFAR10, images.shape, top=top, left=left, flip=flip.bool())
    got = CIFAR10(images, draws)
    for i, (t, f, mirrored) in enumerate(offsets.tolist()):
        expected = TF.crop(TF.pad(images[i], 4, fill=0), t, f, 32, 32)
        assert torch.equal(got[i], TF.hflip(expected) if mirrored else expected)


SPECIAL = [0.0, 1e-30, 0.5, 15, 30, 45, 60, 89.999, 90, 120, 135, 150, 179.99, 180]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(32, 32), (31, 31), (28, 28), (5, 8), (8, 5), (1, 1), (2, 2)])
def test_rotation_is_that_of_pil_bit_for_bit(channels, sides):
    angle = torch.tensor([*SPECIAL, *(-a for a in SPECIAL)])
    angle = torch.cat([angle, torch.empty(100).uniform_(-20, 20, generator=generator())])
    images = noise(len(angle), channels, *sides)
    augmentation = Augmentation(degrees=180)
    got = augmentation(images, drawn(augmentation, images.shape, angle=angle))
    for image, a, rotated in zip(images, angle.tolist(), got, strict=True):
        expected = TF.pil_to_tensor(TF.rotate(TF.to_pil_image(image), a))
        assert torch.equal(rotated, expected), f"{a} degrees"


def test_torchvision_rotates_a_tensor_almost_as_it_rotates_a_pil_image():
    """Some 1.5 pixels in 10,000 differ: it computes in float32, PIL in 16.16 fixed point."""
    augmentation = Augmentation(degrees=20)
    images = noise(300, 1, 32, 32)
    draws = augmentation.draw(images.shape, generator())
    pairs = zip(images, draws.angle.tolist(), strict=True)
    by_tensor = torch.stack([TF.rotate(image, a) for image, a in pairs])
    differing = (augmentation(images, draws) != by_tensor).double().mean().item()
    assert differing < 5e-4


def by_torchvision(augmentation, image, top, left, flip, angle):
    """The transforms of a CIFAR-100 training script on one PIL image, with the draws put in."""
    sides = image.shape[1:]
    chain = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(sides, padding=augmentation.padding),
            transforms.RandomHorizontalFlip(p=float(flip)),
            transforms.RandomRotation(augmentation.degrees),
            transforms.PILToTensor(),
        ]
    )
    with (
        mock.patch.object(transforms.RandomCrop, "get_params", return_value=(top, left, *sides)),
        mock.patch.object(transforms.RandomRotation, "get_params", return_value=angle),
    ):
        return chain(image)


def assert_as_torchvision(augmentation, images, draws):
    got = augmentation(images, draws)
    samples = (images, draws.top.tolist(), draws.left.tolist(), draws.flip.tolist())
    for *sample, angle, image in zip(*samples, draws.angle.tolist(), got, strict=True):
        assert torch.equal(image, by_torchvision(augmentation, *sample, angle)), (sample[1:], angle)


@pytest.mark.parametrize("augmentation", [CIFAR10, CIFAR100, Augmentation(8, True, 180)])
def test_crop_then_flip_then_rotation_is_that_of_torchvision_on_pil_images(augmentation):
    images = noise(300, 3, 32, 32)
    assert_as_torchvision(augmentation, images, augmentation.draw(images.shape, generator(1)))


@st.composite
def cases(draw):
    """Any augmentation, and images that it may be given."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    augmentation = Augmentation(
        padding=draw(st.integers(0, min(height, width) - 1)),
        flip=draw(st.booleans()),
        degrees=draw(st.one_of(st.just(0), st.floats(0, 180))),
    )
    shape = (draw(st.integers(1, 4)), draw(st.sampled_from([1, 3])), height, width)
    return augmentation, noise(*shape, seed=draw(st.integers(0, 99))), draw(st.integers(0, 2**32))


@given(case=cases())
def test_any_augmentation_of_any_image_is_that_of_torchvision(case):
    augmentation, images, seed = case
    draws = augmentation.draw(images.shape, generator(seed))
    assert_as_torchvision(augmentation, images, draws)


# --- the images ----------------------------------------------------------------------------------


@given(case=cases())
def test_a_batch_by_index_is_the_whole_by_index(case):
    augmentation, images, seed = case
    draws = augmentation.draw(images.shape, generator(seed))
    index = torch.randint(len(images), (5,), generator=generator(seed))
    whole = augmentation(images, draws)
    assert torch.equal(augmentation(images[index], some(draws, index)), whole[index])
    assert torch.equal(augmentation(images[1:], some(draws, slice(1, None))), whole[1:])


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(4, True, 20)])
def test_nothing_drawn_is_the_identity(augmentation):
    images = noise(3, 3, 8, 9)
    draws = drawn(
        augmentation,
        images.shape,
        top=torch.full((3,), augmentation.padding),
        left=torch.full((3,), augmentation.padding),
        flip=torch.zeros(3, dtype=torch.bool),
        angle=torch.zeros(3),
    )
    if augmentation == Augmentation():
        assert same(draws, augmentation.draw(images.shape, generator(5)))
    got = augmentation(images, draws)
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr()


def test_the_images_are_left_as_they_were_whatever_their_memory_format():
    images = noise(4, 3, 32, 32)
    before = images.clone()
    draws = CIFAR100.draw(images.shape, generator())
    got = CIFAR100(images, draws)
    assert got.is_contiguous()
    assert got.dtype == torch.uint8
    assert torch.equal(images, before)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(CIFAR100(last, draws), got)


def test_what_a_crop_or_a_rotation_uncovers_is_black():
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    corner = torch.zeros(1, dtype=torch.int64)
    cropped = CIFAR10(images, drawn(CIFAR10, images.shape, top=corner, left=corner))
    assert (cropped == 0).sum() == 3 * (32**2 - 28**2)
    turning = Augmentation(degrees=45)
    rotated = turning(images, drawn(turning, images.shape, angle=torch.tensor([45.0])))
    assert set(rotated.unique().tolist()) == {0, 255}
    assert (rotated[..., [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    # A regular octagon of width 32 is left: 2 (sqrt(2) - 1) 32^2, but for its rim.
    assert (rotated == 255).sum().item() / 3 == pytest.approx(2 * (2**0.5 - 1) * 32**2, abs=32)


def test_an_empty_batch_stays_empty():
    images = noise(0, 3, 32, 32)
    assert CIFAR100(images, CIFAR100.draw(images.shape, generator())).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("augmentation", [CIFAR10, CIFAR100])
def test_nothing_is_asked_of_the_device(augmentation):
    """A meta tensor has no values, so that any look at one raises."""
    draws = on(augmentation.draw((6, 3, 32, 32), generator()), "meta")
    images = torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="meta")
    index = torch.empty(4, dtype=torch.int64, device="meta")
    got = augmentation(images[index], some(draws, index))
    assert (got.device.type, got.dtype, got.shape) == ("meta", torch.uint8, (4, 3, 32, 32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augmentation", [CIFAR10, CIFAR100, Augmentation(8, True, 180)])
def test_cuda_gives_the_cpus_bits_without_waiting_for_it(augmentation):
    images = noise(500, 3, 32, 32)
    draws = augmentation.draw(images.shape, generator())
    index = torch.randperm(500, generator=generator())
    there, drawn_there, index_there = images.cuda(), on(draws, "cuda"), index.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = augmentation(there[index_there], some(drawn_there, index_there))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), augmentation(images, draws)[index])


# --- the draws -----------------------------------------------------------------------------------


def test_seeds_matter_and_nothing_else_does():
    shape = (50, 3, 32, 32)
    first = CIFAR100.draw(shape, generator(1))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(CIFAR100.draw(shape, generator(1)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(CIFAR100.draw(shape, generator(2)), first)


def test_each_sample_has_its_own_draw():
    draws = CIFAR100.draw((3000, 3, 32, 32), generator())
    corners = torch.stack([draws.top, draws.left, draws.flip.long()], dim=1)
    assert len(draws.top) == 3000
    assert len(draws.angle.unique()) > 2990
    assert len(corners.unique(dim=0)) == 9 * 9 * 2


def test_draws_are_uniform_and_independent():
    n = 40_000
    draws = CIFAR100.draw((n, 3, 32, 32), generator())
    cells = torch.bincount(draws.top * 9 + draws.left, minlength=81).double()
    assert (cells - n / 81).abs().max() < 5 * (n / 81) ** 0.5
    assert abs(draws.flip.double().mean().item() - 0.5) < 5 * 0.5 / n**0.5
    assert draws.angle.abs().max() <= 20
    tenths = torch.histc(draws.angle, bins=10, min=-20, max=20)
    assert (tenths - n / 10).abs().max() < 5 * (n / 10) ** 0.5
    columns = torch.stack([draws.top, draws.left, draws.flip, draws.angle]).double()
    assert (columns.corrcoef() - torch.eye(4)).abs().max() < 5 / n**0.5


def test_more_samples_leave_the_draws_of_the_first_as_they_are():
    many = CIFAR100.draw((100, 3, 32, 32), generator())
    assert same(some(many, slice(7)), CIFAR100.draw((7, 1, 32, 32), generator()))


def test_switching_one_kind_off_leaves_the_draws_of_the_others_as_they_are():
    shape = (100, 3, 32, 32)
    every = CIFAR100.draw(shape, generator())
    crop = Augmentation(padding=4).draw(shape, generator())
    flip = Augmentation(flip=True).draw(shape, generator())
    turn = Augmentation(degrees=20).draw(shape, generator())
    assert torch.equal(crop.top, every.top)
    assert torch.equal(crop.left, every.left)
    assert torch.equal(flip.flip, every.flip)
    assert torch.equal(turn.angle, every.angle)
    assert not crop.flip.any()
    assert not crop.angle.any()
    assert not flip.top.any()
    assert not flip.left.any()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"padding": -1}, "padding.*greater than or equal to 0"),
        ({"padding": 2.0}, "padding.*valid integer"),
        ({"padding": True}, "padding.*valid integer"),
        ({"flip": 1}, "flip.*valid boolean"),
        ({"degrees": -1}, "degrees.*greater than or equal to 0"),
        ({"degrees": 180.5}, "degrees.*less than or equal to 180"),
        ({"degrees": float("nan")}, "degrees.*equal to"),
        ({"degrees": "20"}, "degrees.*valid number"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Augmentation(**params)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape must be \(N, C, H, W\), got \(3, 32, 32\)"):
        CIFAR10.draw((3, 32, 32), generator())
    for shape in [(1, 3, 4, 32), (1, 3, 32, 4)]:
        with pytest.raises(ValueError, match="padding must be less than the images' sides"):
            CIFAR10.draw(shape, generator())


def test_bad_images_are_refused():
    images = noise(2, 3, 32, 32)
    draws = CIFAR10.draw(images.shape, generator())
    with pytest.raises(TypeError, match=r"images must be a uint8 tensor, got torch\.float32"):
        CIFAR10(images.float(), draws)
    with pytest.raises(TypeError, match="images must be a uint8 tensor, got ndarray"):
        CIFAR10(images.numpy(), draws)
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\) with B = 2 as the draws"):
        CIFAR10(images[0], draws)
    with pytest.raises(ValueError, match=r"with B = 2 as the draws, got shape \(1, 3, 32, 32\)"):
        CIFAR10(images[:1], draws)
