from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# How many rows, definitions and changes `pair` will find.
def measure(words: Array, batches: Array, threads: int, /) -> tuple[int, int, int]: ...

# Fill the arrays behind `knots`, and tell what was unusual, by name.
def pair(
    words: Array,
    batches: Array,
    knots: Array,
    start_ns: Array,
    dur_ns: Array,
    self_ns: Array,
    parent: Array,
    depth: Array,
    code: Array,
    kind: Array,
    complete: Array,
    definitions: Array,
    changes: Array,
    thread_rows: Array,
    end_ns: int,
    /,
) -> dict[str, int]: ...

# Add rows up by key into the last three; recursion counts once in the total.
def sum_up(
    order: Array,
    parent: Array,
    key: Array,
    dur_ns: Array,
    self_ns: Array,
    counted: Array,
    ncalls: Array,
    total_ns: Array,
    self_sum_ns: Array,
    /,
) -> None: ...
