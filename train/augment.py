"""Distorts training images a little, so that few samples go further."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekiln.train.datasets import Images, Labels
from edgekiln.train.recipe import Augmentation


def augment(
    images: Images, labels: Labels, plan: Augmentation | None, seed: int
) -> tuple[Images, Labels]:
    """Returns the images and, after them, ``plan.copies`` distorted copies of all of them.

    With no copies they are returned as they are: `FreshImages` distorts them then.

    Args:
        images: float32 [N, H, W, C].
        labels: int64 [N].
        plan: How to distort, or None to return the arrays as they are.
        seed: Seed of the distortions.

    Returns:
        float32 [N * (1 + copies), H, W, C] and int64 [N * (1 + copies)].
    """
    if plan is None or plan.copies == 0:
        return images, labels
    random = np.random.default_rng(seed)
    copies = [distort(images, plan, random) for _ in range(plan.copies)]
    return np.concatenate([images, *copies]), np.tile(labels, plan.copies + 1)


def distort(images: Images, plan: Augmentation, random: np.random.Generator) -> Images:
    """Mirrors, rotates, zooms and shifts each image about its centre, with bilinear sampling.

    Args:
        images: float32 [N, H, W, C].
        plan: By how much at most.
        random: Where each image's own distortion comes from.

    Returns:
        float32 [N, H, W, C].
    """
    if plan.flip:
        mirrored = random.random(len(images)) < 0.5
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    if not (plan.rotation_degrees or plan.shift_pixels or plan.zoom):
        return images
    count, height, width, _ = images.shape
    angle = np.deg2rad(random.uniform(-plan.rotation_degrees, plan.rotation_degrees, count))
    zoom = 1.0 + random.uniform(-plan.zoom, plan.zoom, count)
    shift = random.uniform(-plan.shift_pixels, plan.shift_pixels, (2, count))
    cos, sin = (np.cos(angle) / zoom)[:, None, None], (np.sin(angle) / zoom)[:, None, None]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = np.arange(height)[:, None] - middle_y - shift[0][:, None, None]
    x = np.arange(width)[None, :] - middle_x - shift[1][:, None, None]
    return _sample(images, cos * y - sin * x + middle_y, sin * y + cos * x + middle_x)


def _sample(images: Images, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> Images:
    """Reads each image at [N, H, W] fractional positions; outside of it is zero."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    y = np.clip(y + 1, 0, images.shape[1] + 1)
    x = np.clip(x + 1, 0, images.shape[2] + 1)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    below, right = (y - top)[..., None], (x - left)[..., None]
    one = np.arange(len(images))[:, None, None]
    upper = (1 - right) * padded[one, top, left] + right * padded[one, top, left + 1]
    lower = (1 - right) * padded[one, top + 1, left] + right * padded[one, top + 1, left + 1]
    sampled: Images = ((1 - below) * upper + below * lower).astype(np.float32)
    return sampled
