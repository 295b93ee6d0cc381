"""What the BPF program and the drain count: ``enum pst_counter`` of ``bpf/pystack_time.h``.

Both sides of the socket take it from here; the unit test of the layout compares it with the
header.
"""

from __future__ import annotations

from enum import IntEnum


class Counter(IntEnum):
    """Index into the counters of a stats record."""

    TICKS = 0
    HITS = 1
    RING_FULL = 2
    DENIED = 3
    NAME_LOST = 4
    MAP_FULL = 5
    DISK_FULL = 6
    CALLS_LOST = 7


COUNTERS = len(Counter)
