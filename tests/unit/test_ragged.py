"""Rows of different lengths in one flat array."""

from __future__ import annotations

import numpy as np
import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb import ragged
from pystack_nb.ragged import Rows, concatenate, group


LISTS = st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=20)


def rows_of(lists):
    counts = np.array([len(x) for x in lists], np.int64)
    flat = np.array([y for x in lists for y in x], np.uint64)
    return Rows.packed(flat, counts)


def lists_of(rows):
    flat = rows.elements().tolist()
    ends = np.cumsum(rows.counts).tolist()
    return [flat[end - n : end] for end, n in zip(ends, rows.counts.tolist(), strict=True)]


@given(LISTS)
def test_rows_come_out_as_they_went_in_and_back_to_front(lists):
    rows = rows_of(lists)
    assert lists_of(rows) == lists
    backwards = Rows.packed(rows.elements(reverse=True), rows.counts)
    assert lists_of(backwards) == [x[::-1] for x in lists]
    assert rows.positions().tolist() == [n for x in lists for n in range(len(x))]


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=3)] * 3), max_size=10))
def test_rows_of_several_arrays_are_joined_row_by_row(triples):
    parts = [rows_of([x[n] for x in triples]) for n in range(3)]
    assert lists_of(concatenate(*parts)) == [[*x, *y, *z] for x, y, z in triples]
    assert lists_of(concatenate(*parts, reverse=True)) == [
        [*x[::-1], *y[::-1], *z[::-1]] for x, y, z in triples
    ]


@pytest.mark.parametrize("collide", [False, True])
@given(LISTS, st.lists(st.integers(0, 1), min_size=20, max_size=20))
def test_equal_rows_are_one_group_even_if_every_hash_collides(collide, lists, lead):
    lead = np.array(lead[: len(lists)], np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(ragged, "_mix", np.zeros_like)
        ids, first = group(rows_of(lists), lead)
    keys = [(tuple(x), int(y)) for x, y in zip(lists, lead, strict=True)]
    numbers = {}
    assert ids.tolist() == [numbers.setdefault(x, len(numbers)) for x in keys]
    assert [keys[n] for n in first.tolist()] == list(numbers)


def test_more_elements_than_are_worked_on_at_a_time_make_no_difference(monkeypatch):
    lists = [[n % 5] * (n % 7) for n in range(300)]
    whole = group(rows_of(lists), np.zeros(300, np.uint64))
    monkeypatch.setattr(ragged, "_CHUNK", 3)
    parts = group(rows_of(lists), np.zeros(300, np.uint64))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
