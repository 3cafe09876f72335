"""How much accuracy a change of the outputs costs, estimated from margins instead of counted changes of side.

Margins of labelled samples before and after come in; the loss and its standard error go out. Of a few thousand samples
some hundred change sides, so that a counted loss scatters by a third of a point; margins say of all the others, too,
how near they came to it.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special

from passes.records import Array, Floats

NEAR = 0.25
"""Share of the samples, those nearest to their boundary, whose changes say how wide to blur."""


def of_labels(scores: Array, labels: Array) -> Floats:
    """Score of the label less the largest other score.

    Args:
        scores: Shape (samples, classes); more axes of length 1 are ignored.
        labels: Shape (samples,), in 0..classes - 1.

    Returns:
        Shape (samples,); positive where the label wins.
    """
    table = scores.reshape(len(scores), -1).astype(np.float64)
    rows = np.arange(len(table))
    own = table[rows, labels].copy()
    table[rows, labels] = -np.inf
    found: Floats = own - table.max(axis=1)
    return found


def smoothed_loss(before: Floats, after: Floats) -> tuple[float, float]:
    """Loss of accuracy and its standard error, with every margin blurred by a change like those that were measured.

    A sample counts Phi(margin / width) instead of 0 or 1, before and after alike; the width is the root mean square of
    the changes of the samples nearest to their boundary. It is the loss to be expected when every sample stood for
    samples like it. Nothing changed: exactly 0.

    Args:
        before: Margins, shape (samples,).
        after: The same samples.

    Returns:
        The loss, in -1..1, and its standard error, both 0 where nothing near a boundary changed.
    """
    finite = np.isfinite(before) & np.isfinite(after)
    old, new = before[finite], after[finite]
    near = np.argsort(np.abs(old), kind="stable")[: max(round(NEAR * len(old)), 1)]
    width = math.sqrt(float(np.mean((new[near] - old[near]) ** 2))) if len(old) else 0.0
    if width == 0.0:
        return 0.0, 0.0
    lost = scipy.special.ndtr(old / width) - scipy.special.ndtr(new / width)
    return float(np.sum(lost)) / len(before), float(np.std(lost)) * math.sqrt(len(lost)) / len(before)
