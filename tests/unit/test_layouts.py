"""Layouts: they fill the wire structure, and refuse what nobody has looked at."""

from __future__ import annotations

import dataclasses
import re
import struct

from pathlib import Path

import pytest

from pystack_nb.collector import layouts, target
from pystack_nb.collector.layouts import DEBUG_OFFSETS_SIZE, LayoutError, layout_for


HEADER = Path(__file__).parents[2] / "bpf" / "pystack_time.h"


def debug_offsets(free_threaded: int = 0, **changed: int) -> bytes:
    """Make the words that an ordinary 3.13 has at the start of `_PyRuntime`."""
    words = [0] * (DEBUG_OFFSETS_SIZE // 8)
    table = dataclasses.asdict(layouts._3_13) | changed
    for field, index in layouts._DEBUG_FIELDS.items():
        words[index] = table[field]
    words[2] = free_threaded
    data = bytearray(struct.pack(f"<{len(words)}Q", *words))
    data[:8] = b"xdebugpy"
    return bytes(data)


def test_an_interpreter_tells_exactly_the_fields_of_the_wire_structure() -> None:
    text = re.search(r"struct pst_layout \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)
    assert text
    declared = re.findall(r"__u(?:32|64) (\w+);", text[1])
    told = {field.name for field in dataclasses.fields(layouts.Layout)}
    told -= target._FIELDS_OF_THE_WALK
    assert sorted(declared) == sorted(told | {"code_type", "thread_state_tls"})


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 11, 14), (3, 12, 0), (3, 12, 12)])
def test_every_patch_release_of_a_minor_version_has_its_layout(
    version: tuple[int, int, int],
) -> None:
    assert layout_for(version, b"") == layouts._TABLE[version[:2]]


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 13), (3, 14, 0), (4, 0, 0)])
def test_another_version_is_refused_by_its_name(version: tuple[int, int, int]) -> None:
    with pytest.raises(LayoutError, match=re.escape(".".join(map(str, version)))):
        layout_for(version, debug_offsets())


def test_3_13_takes_the_way_to_the_threads_from_the_interpreter_itself() -> None:
    layout = layout_for((3, 13, 1), debug_offsets(threads_head=7400))
    assert layout == dataclasses.replace(layouts._3_13, threads_head=7400)


def test_a_free_threaded_build_is_refused() -> None:
    with pytest.raises(LayoutError, match="free-threaded"):
        layout_for((3, 13, 0), debug_offsets(free_threaded=1))


def test_a_build_with_another_frame_is_refused() -> None:
    with pytest.raises(LayoutError, match="frame_owner at 74 instead of 70"):
        layout_for((3, 13, 0), debug_offsets(frame_owner=74))


def test_an_offset_beyond_any_structure_is_refused() -> None:
    with pytest.raises(LayoutError, match="threads_head"):
        layout_for((3, 13, 0), debug_offsets(threads_head=1 << 40))


@pytest.mark.parametrize("data", [b"", debug_offsets()[:-8], b"y" + debug_offsets()[1:]])
def test_debug_offsets_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(LayoutError, match="does not describe"):
        layout_for((3, 13, 0), data)
