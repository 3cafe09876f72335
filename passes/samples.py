"""Inputs for a model with what is known of them: the arrays, the labels, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from passes.records import Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Inputs:
    """Arrays to feed a model with, samples first.

    Attributes:
        feeds: One array an input; sample i is rows i * r to (i + 1) * r, with r from `rows`. An input without axes
            (a scalar) has one entry a sample.
        labels: Class index of every sample, int64; None when there are none.
        source: Where they come from, in words.
        digest: SHA-256 over names, types, shapes and values of the feeds.
        rows: Rows of one sample for inputs whose first axis is no batch axis; 1 for the others.
        notes: What was converted on the way in.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    source: str
    digest: str
    rows: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """How many there are."""
        return next((len(array) // self.rows.get(name, 1) for name, array in self.feeds.items()), 0)


def digest_feeds(feeds: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and values."""
    state = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()
