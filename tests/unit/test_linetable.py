"""The decoder of location tables agrees with the interpreter that wrote them."""

from __future__ import annotations

import argparse
import ast
import asyncio.base_events
import dataclasses
import inspect
import types

import numpy as np
import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb.linetable import decode_lines


def code_objects(module):
    """All code objects of a module's source, nested ones included."""
    todo = [compile(inspect.getsource(module), module.__file__, "exec")]
    while todo:
        code = todo.pop()
        yield code
        todo += [x for x in code.co_consts if isinstance(x, types.CodeType)]


def lines_of(code):
    """What co_lines() tells, one line a code unit, 0 for none."""
    lines = np.zeros(len(code.co_code) // 2, np.int32)
    for start, end, line in code.co_lines():
        lines[start // 2 : end // 2] = line or 0
    return lines


@pytest.mark.parametrize(
    "module", [argparse, ast, asyncio.base_events, dataclasses, inspect], ids=lambda x: x.__name__
)
def test_every_instruction_of_the_standard_library_has_the_line_that_co_lines_tells(module):
    for code in code_objects(module):
        decoded = decode_lines(code.co_linetable, code.co_firstlineno)
        np.testing.assert_array_equal(decoded, lines_of(code), err_msg=code.co_qualname)


def test_an_entry_without_a_line_leaves_the_running_line_alone():
    no_columns, no_line = 0x80 | 13 << 3, 0x80 | 15 << 3
    table = bytes([no_columns, 2 << 1, no_line | 1, no_columns, 1 << 1])
    assert decode_lines(table, 10).tolist() == [12, 0, 0, 13]


def test_a_line_may_lie_before_the_first_one():
    assert decode_lines(bytes([0x80 | 13 << 3, 3 << 1 | 1]), 10).tolist() == [7]


def test_a_long_entry_takes_its_columns_along():
    table = bytes([0x80 | 14 << 3, 1 << 1, 0, 64 | 5, 1, 9, 0x80, 7])
    assert decode_lines(table, 10).tolist() == [11, 11]


def test_a_table_cut_short_gives_the_lines_up_to_there():
    code = compile("\n".join(f"x{n} = {n}" for n in range(100)), "x", "exec")
    whole = decode_lines(code.co_linetable, 1)
    part = decode_lines(code.co_linetable[: len(code.co_linetable) // 2], 1)
    assert 0 < len(part) < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])


def test_a_number_longer_than_any_real_one_ends_the_table():
    assert decode_lines(bytes([0x80 | 13 << 3, *[0x7F] * 1_000_000]), 1).tolist() == []


@given(st.binary(max_size=300), st.integers(-(2**31), 2**31 - 1))
def test_any_bytes_give_lines_that_fit_and_no_more_than_eight_a_byte(table, first_line):
    lines = decode_lines(table, first_line)
    assert lines.dtype == np.int32
    assert len(lines) <= 8 * len(table)
    assert (lines >= 0).all()


def test_the_lines_of_a_table_cannot_be_changed_under_the_next_who_asks():
    with pytest.raises(ValueError, match="read-only"):
        decode_lines(b"\x80\x00", 7)[0] = 8
    assert decode_lines(b"\x80\x00", 7).tolist() == [7]
