"""Work on several threads: order, bounds on what waits, errors, and what is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import parallel


@settings(max_examples=25, deadline=None)
@given(items=st.lists(st.integers(-5, 5), max_size=9), threads=st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.0005 * (5 - item))
        return item * item

    expected = [item * item for item in items]
    assert parallel.spread(late, items, threads=threads) == expected
    assert list(parallel.ahead(late, items, threads=threads)) == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_only_as_much_is_begun_as_may_wait(threads: int) -> None:
    begun: list[int] = []

    def note(item: int) -> int:
        begun.append(item)
        return item

    results = parallel.ahead(note, range(20), threads=threads)
    for asked, item in enumerate(results, 1):
        assert item == asked - 1
        assert len(begun) <= asked + threads
    assert sorted(begun) == list(range(20))


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            drawn.append(item)
            yield item

    results = parallel.ahead(lambda item: item, items(), threads=2)
    next(results)
    assert len(drawn) <= 4
    results.close()
    assert threading.active_count() < 50


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_is_raised_and_the_rest_is_not_begun(threads: int) -> None:
    begun: list[int] = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    with pytest.raises(ValueError, match="two"):
        list(parallel.ahead(fail, range(100), threads=threads))
    assert len(begun) < 20
    with pytest.raises(ValueError, match="two"):
        parallel.spread(fail, range(4), threads=threads)
