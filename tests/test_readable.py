"""Numbers read the way a person writes them, at the edges of the prefixes too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes import readable


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "unknown"), (0, "0"), (999, "999"), (1000, "1.00 k"), (12_345, "12.3 k"), (999_499, "999 k"),
        (999_500, "1.00 M"), (11_173_962, "11.2 M"), (4_560_000_000, "4.56 G"), (2 * 10**15, "2000 T"),
    ],
)  # fmt: skip
def test_count(number: int | None, shown: str) -> None:
    assert readable.count(number) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (4_560_000, "4.56 MB"), (14 * 10**9, "14.0 GB")],
)
def test_size(number: int, shown: str) -> None:
    assert readable.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "unknown"), (0.0, "0 s"), (8.5e-7, "850 ns"), (9.996e-6, "10.0 us"), (1.23e-3, "1.23 ms"),
        (0.99951, "1.00 s"), (41.23, "41.2 s"), (599.0, "599 s"), (600.0, "10.0 min"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, shown: str) -> None:
    assert readable.duration(seconds) == shown


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (231.0, 100.0, "2.31x fewer"), (100.0, 110.0, "1.10x more"), (5, 5, "the same"), (1000, 999, "about the same"),
        (999, 1000, "about the same"), (5, 0, "all gone"), (1234.0, 1.0, "1234x fewer"), (None, 1, ""), (1, None, ""),
        (0, 3, ""), (0, 0, ""),
    ],
)  # fmt: skip
def test_ratio(before: float | None, after: float | None, shown: str) -> None:
    assert readable.ratio(before, after, ("fewer", "more")) == shown


def test_short_ratio_keeps_small_gains_readable() -> None:
    assert readable.ratio(3.14, 1.0, ("faster", "slower"), 1) == "3.1x faster"
    assert readable.ratio(1.04, 1.0, ("faster", "slower"), 1) == "1.04x faster"


def test_shares() -> None:
    assert readable.percent(0.98434) == "98.43 %"
    assert readable.percent(0.989, 1) == "98.9 %"
    assert readable.points(0.01, 1) == "1.0 point"
    assert readable.points(0.005) == "0.50 points"
    assert readable.error(0.0) == "0"
    assert readable.error(0.01234) == "0.0123"
    assert readable.error(2.123e-7) == "2.12e-07"


@given(st.integers(min_value=0, max_value=10**14))
def test_count_is_within_half_a_percent_of_the_number(number: int) -> None:
    value, _, unit = readable.count(number).partition(" ")
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert abs(float(value) * scale - number) <= 0.0051 * number
    assert len(value.replace(".", "")) <= 3


@given(st.text())
def test_harmless_text_is_one_printable_line(text: str) -> None:
    assert readable.harmless(text).isprintable()


def test_harmless_keeps_what_is_printable() -> None:
    assert readable.harmless("卷积/conv[0] :smile:") == "卷积/conv[0] :smile:"
    assert readable.harmless("a\x1b[31mb\nc") == r"a\x1b[31mb\nc"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("/transformer/h.0/Gemm", "/transformer/h.1/Gemm", "/lm_head/MatMul"), "/transformer/"),
        (("encoder.layers.0.fc", "encoder.layers.1.fc", "encoder.layers.1.q"), "encoder.layers."),
        (("/a/Conv", "/a/Gemm"), ""),
        (("/transformer/h.0/Gemm",), ""),
        (("/transformer/x", "/other/y", "/third/z"), ""),
        ((), ""),
    ],
)
def test_stem(names: tuple[str, ...], expected: str) -> None:
    assert readable.stem(names) == expected
