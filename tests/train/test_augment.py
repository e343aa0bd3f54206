"""The distortions of training images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from edgekiln.train.augment import _sample as sample
from edgekiln.train.augment import augment, distort
from edgekiln.train.recipe import Augmentation

STILL = Augmentation(copies=1, rotation_degrees=0, shift_pixels=0, zoom=0)
RANDOM = np.random.default_rng(7)
IMAGES = RANDOM.uniform(0, 1, (5, 6, 8, 2)).astype(np.float32)
LABELS = np.arange(5)


def test_without_a_plan_nothing_changes() -> None:
    images, labels = augment(IMAGES, LABELS, None, seed=1)
    assert images is IMAGES and labels is LABELS


def test_the_originals_come_first_and_labels_follow() -> None:
    plan = Augmentation(copies=3, rotation_degrees=10, shift_pixels=0.5, zoom=0.1)
    images, labels = augment(IMAGES, LABELS, plan, seed=1)
    assert images.shape == (20, 6, 8, 2) and images.dtype == np.float32
    np.testing.assert_array_equal(images[:5], IMAGES)
    np.testing.assert_array_equal(labels, np.tile(LABELS, 4))


def test_no_distortion_is_the_identity() -> None:
    images, _ = augment(IMAGES, LABELS, STILL, seed=1)
    np.testing.assert_array_equal(images[5:], IMAGES)


def test_a_seed_gives_the_same_images() -> None:
    plan = Augmentation(copies=2, rotation_degrees=10, shift_pixels=0.5, zoom=0.1)
    first, _ = augment(IMAGES, LABELS, plan, seed=1)
    np.testing.assert_array_equal(first, augment(IMAGES, LABELS, plan, seed=1)[0])
    assert not np.array_equal(first, augment(IMAGES, LABELS, plan, seed=2)[0])
    assert not np.array_equal(first[5:10], first[10:15])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_moves_the_centre_of_mass(axis: int) -> None:
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4, 0] = 1.0
    plan = dataclasses.replace(STILL, copies=200, shift_pixels=1.5)
    images, _ = augment(image, LABELS[:1], plan, seed=3)
    copies = images[1:, ..., 0]
    np.testing.assert_allclose(copies.sum(axis=(1, 2)), 1.0, rtol=1e-5)
    centre = (copies.sum(axis=2 - axis) * np.arange(9)).sum(axis=1) - 4
    assert np.all(np.abs(centre) <= 1.5 + 1e-5)
    assert centre.min() < -1.3 and centre.max() > 1.3


def test_sampling_equals_scipy() -> None:
    random = np.random.default_rng(11)
    y, x = random.uniform(-4, 12, (2, 5, 6, 8))
    sampled = sample(IMAGES, y, x)
    for image in range(5):
        for channel in range(2):
            expected = ndimage.map_coordinates(
                IMAGES[image, ..., channel], [y[image], x[image]], order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(sampled[image, ..., channel], expected, atol=1e-6)


def test_values_stay_within_the_originals() -> None:
    plan = Augmentation(copies=20, rotation_degrees=30, shift_pixels=3, zoom=0.3)
    images, _ = augment(IMAGES, LABELS, plan, seed=5)
    assert images.min() >= 0.0 and images.max() <= IMAGES.max()


def test_half_of_the_images_are_mirrored() -> None:
    images = np.tile(IMAGES[:1], (1000, 1, 1, 1))
    plan = dataclasses.replace(STILL, flip=True)
    distorted = distort(images, plan, np.random.default_rng(1))
    mirrored = (distorted == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((distorted == images).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 440 < mirrored.sum() < 560
