"""Two cores without a fight: independent pieces of numpy work on threads, each with single-threaded linear algebra.

A function and items come in, results in the order of the items go out, the same digits for any number of workers.
Threads of a linear algebra library wait for each other by spinning: on a shared machine that costs four times the
time (docs/decisions/0006), and its sums depend on their number.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def workers(threads: int) -> int:
    """Threads asked for, or one a core that this process may use."""
    if threads > 0:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def single_threaded() -> threadpool_limits:
    """A context in which every call into linear algebra runs on the thread that made it."""
    return threadpool_limits(limits=1, user_api="blas")


def spread(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 0) -> list[Result]:
    """Call the function on every item, on several threads; the first error is raised.

    Args:
        function: Works mostly inside numpy, scipy or ONNX Runtime, which let go of the interpreter.
        items: Independent of each other.
        threads: At most that many at once; 0 for one a core.
    """
    items = list(items)
    count = min(workers(threads), len(items))
    if count <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 0) -> Iterator[Result]:
    """`spread`, one result at a time, in order; at most one more than there are threads is under way or waits."""
    count = workers(threads)
    if count <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
