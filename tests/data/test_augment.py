import random

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.data.transforms import RandomErasing, draws, shift_and_flip
from glocal.training import TrainConfig
from glocal.training.loader import rand_augment

SIZE, COUNT = 16, 40


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(256, size=(COUNT, SIZE, SIZE, 3), dtype=np.uint8)


REACH = 2


def shifts_and_flips(image, reach=REACH):
    """All that may become of an image, by padding and cropping."""
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            crop = padded[dy : dy + SIZE, dx : dx + SIZE]
            yield (dy, dx, False), crop
            yield (dy, dx, True), crop[:, ::-1]


def test_it_pads_crops_and_flips(pixels):
    augmented = shift_and_flip(pixels, draws(0, 0, np.arange(COUNT)), max_shift=REACH, flip=True)
    found = [
        next(how for how, expected in shifts_and_flips(image) if np.array_equal(expected, got))
        for image, got in zip(pixels, augmented, strict=True)
    ]
    assert {dy for dy, _, _ in found} == {dx for _, dx, _ in found} == set(range(5))
    assert 10 < sum(flipped for *_, flipped in found) < 30


def test_an_image_is_augmented_alike_in_any_batch(pixels):
    whole = shift_and_flip(pixels, draws(3, 7, np.arange(COUNT)), max_shift=REACH, flip=True)
    some = np.array([31, 2, 5])
    assert np.array_equal(shift_and_flip(pixels[some], draws(3, 7, some), max_shift=REACH, flip=True), whole[some])


def test_epochs_and_seeds_differ(pixels):
    def make(seed, epoch):
        return shift_and_flip(pixels, draws(seed, epoch, np.arange(COUNT)), max_shift=REACH, flip=True)

    assert not np.array_equal(make(0, 0), make(0, 1))
    assert not np.array_equal(make(0, 0), make(1, 0))


@pytest.mark.parametrize(("reach", "flip"), [(REACH, False), (0, True), (0, False)])
def test_nothing_is_done_that_was_not_asked(pixels, reach, flip):
    augmented = shift_and_flip(pixels, draws(0, 0, np.arange(COUNT)), max_shift=reach, flip=flip)
    for got, image in zip(augmented, pixels, strict=True):
        allowed = [expected for (*_, flipped), expected in shifts_and_flips(image, reach) if flip or not flipped]
        assert any(np.array_equal(got, expected) for expected in allowed)


def test_randaugment_depends_on_seed_epoch_and_position_alone(pixels):
    augment = rand_augment(SIZE, TrainConfig.of(augment="randaugment"))
    image = Image.fromarray(pixels[0]).resize((40, 30))

    def make(position=4, seed=0, epoch=0):
        return augment(image, draws(seed, epoch, np.array([position]))[0])

    first = make()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(make(), first)
    assert not any(np.array_equal(make(**other), first) for other in ({"position": 5}, {"seed": 1}, {"epoch": 1}))


def test_randaugment_leaves_the_generators_as_they_were(pixels):
    augment = rand_augment(SIZE, TrainConfig.of(augment="randaugment"))

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    augment(Image.fromarray(pixels[0]), draws(0, 0, np.array([0]))[0])
    assert draw() == expected


def test_draws_are_those_of_splitmix64():
    """Against the generator written with Python's integers: no numpy overflow or cast changes a draw."""
    mask = 2**64 - 1

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the published first output from seed 0
    for seed, epoch, slot in ((0, 0, 0), (3, 7, 5), (2**31, 1000, 10**9)):
        expected = [mix((mix((mix(seed) + epoch) & mask) + mix(4 * slot + i)) & mask) >> 32 for i in range(4)]
        assert draws(seed, epoch, np.array([slot]))[0].tolist() == expected


def test_draws_are_even_and_independent():
    drawn = draws(0, 0, np.arange(20_000)) / 2**32
    assert np.allclose(drawn.mean(0), 0.5, atol=0.01)
    assert np.allclose(np.corrcoef(drawn.T), np.eye(4), atol=0.03)
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.03


def test_erasing_is_an_images_own_and_has_timms_share():
    images = torch.zeros(64, 3, SIZE, SIZE)
    seeds = torch.arange(64)
    erased = RandomErasing(0.25)(images.clone(), seeds)
    assert 6 <= (erased != 0).flatten(1).any(1).sum() <= 28
    some = torch.tensor([40, 3])
    assert torch.equal(RandomErasing(0.25)(images[some].clone(), seeds[some]), erased[some])
