from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# How many rows, definitions and changes `pair` will find.
def measure(words: Array, batches: Array, threads: int, /) -> tuple[int, int, int]: ...

# Fill the arrays, those of `pairing.Paired` in their order; what was unusual, by name.
def pair(
    words: Array, batches: Array, knots: Array, end_ns: int, /, *arrays: Array
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
