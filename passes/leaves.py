"""Dead-leaves images: occluding shapes of power-law sizes over 1/f texture, with the statistics of natural images.

Counts, sizes and a generator come in; float32 images of about zero mean and unit variance, channels last, go out.
Image i is the same whatever the number of images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = -2.1, 2.6
"""Range of photographs after the usual normalisation: black and white, in standard deviations."""

LEAST_SHAPES, MOST_SHAPES = 5, 40
SMALLEST_RADIUS, RADIUS_SCALE, LARGEST_SHARE = 1.5, 2.0, 0.7
"""Radii are 1.5 + 2 Pareto(2) pixels in an image of 32 rows, at most 0.7 of the height."""

REFERENCE_ROWS = 32
COLOUR = 0.35
TEXTURE = 0.15

Images = npt.NDArray[np.float32]


def paint(count: int, height: int, width: int, channels: int, rng: np.random.Generator) -> Images:
    """Paint images.

    Returns:
        Shape (count, height, width, channels), values in LOWEST..HIGHEST.
    """
    images = np.empty((count, height, width, channels), dtype=np.float32)
    damping = _damping(height, width)
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    for image in images:
        _paint_one(image, damping, rows, columns, rng)
    return np.clip(images, LOWEST, HIGHEST, out=images)


def _damping(height: int, width: int) -> npt.NDArray[np.float64]:
    """One over the frequency of every coefficient of a real 2-D transform, without the mean."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    return np.asarray(1.0 / frequency)


def _paint_one(
    image: Images,
    damping: npt.NDArray[np.float64],
    rows: Images,
    columns: Images,
    rng: np.random.Generator,
) -> None:
    height, width, channels = image.shape
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * damping, s=(height, width))
    texture *= TEXTURE / (texture.std() + 1e-12)
    # Twice in each direction, so that every shape sees its own window of it.
    tiled = np.tile(texture.astype(np.float32), (2, 2))[..., None]
    count = int(rng.integers(LEAST_SHAPES, MOST_SHAPES + 1))
    colours = (rng.standard_normal((count + 1, 1)) + COLOUR * rng.standard_normal((count + 1, channels))).astype("f4")
    radii = (SMALLEST_RADIUS + RADIUS_SCALE * rng.pareto(2.0, count)) * height / REFERENCE_ROWS
    radii = np.minimum(radii, LARGEST_SHARE * height)
    centres = rng.random((count, 2)) * (height, width)
    angles = rng.random(count) * np.pi
    aspects = 0.3 + 0.7 * rng.random(count)
    discs = rng.random(count) < 0.5
    shifts = (rng.random((count, 2)) * (height, width)).astype(int)
    image[:] = colours[0] + tiled[:height, :width]
    for index in range(count):
        radius, (middle_row, middle_column) = float(radii[index]), centres[index]
        top, bottom = max(int(middle_row - radius), 0), min(int(middle_row + radius) + 2, height)
        left, right = max(int(middle_column - radius), 0), min(int(middle_column + radius) + 2, width)
        down = (rows[top:bottom] - np.float32(middle_row))[:, None]
        across = (columns[left:right] - np.float32(middle_column))[None, :]
        if discs[index]:
            mask = down * down + across * across <= radius * radius
        else:
            sine, cosine = np.float32(np.sin(angles[index])), np.float32(np.cos(angles[index]))
            # The corner, not the side, is at the radius, so that the rectangle stays in its window.
            half = radius / float(np.hypot(1.0, aspects[index]))
            mask = np.abs(across * cosine + down * sine) <= half
            mask &= np.abs(down * cosine - across * sine) <= half * aspects[index]
        window_top, window_left = shifts[index]
        window = tiled[window_top : window_top + bottom - top, window_left : window_left + right - left]
        np.copyto(image[top:bottom, left:right], colours[index + 1] + window, where=mask[..., None])
