"""The tables of a recording share what they can without anyone's seeing it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pystack_nb import tables


def test_a_new_column_of_an_empty_table_is_in_no_other_empty_table():
    table = tables.empty(tables.EVENTS)
    table["mine"] = 1
    assert list(tables.empty(tables.EVENTS)) == list(tables.EVENTS)


def test_a_name_given_to_the_rows_or_the_columns_of_a_table_is_no_other_table_s():
    table = tables.empty(tables.EVENTS)
    table.index.name, table.columns.name = "mine", "mine"
    other = tables.empty(tables.EVENTS)
    assert (other.index.name, other.columns.name) == (None, None)


def test_a_name_given_to_categories_is_no_other_column_s():
    codes = np.array([0])
    tables.categorical(codes, ["a"]).categories.name = "mine"
    assert tables.categorical(codes, ["a"]).categories.name is None


@pytest.mark.parametrize("columns", [tables.SAMPLES, tables.EVENTS, tables.CALLS])
def test_a_table_without_rows_gets_the_dtypes_of_its_columns(columns):
    table = tables.conform(pd.DataFrame({x: [] for x in columns}), columns, [], "any")
    assert {x: str(table[x].dtype) for x in table} == columns


@pytest.mark.parametrize("count", [3, 1000])
def test_a_categorical_has_the_values_used_in_order(count):
    names = [f"name {x:04}" for x in reversed(range(count))]
    codes = np.array([0, count - 2, -1, 0])
    found = tables.categorical(codes, names)
    expected = [names[0], names[count - 2], None, names[0]]
    assert found.categories.tolist() == sorted(set(expected) - {None})
    assert tables.texts(pd.Series(found)) == expected


def test_rows_are_found_by_their_text():
    column = pd.Series(tables.categorical(np.array([1, 0, -1, 1]), ["b", "a"]))
    assert tables.is_text(column, "a").tolist() == [True, False, False, True]
    assert not tables.is_text(column, "c").any()
