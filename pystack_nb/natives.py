"""Native and kernel frames of a spool file: stack ids into rows of frame definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import wire
from pystack_nb.codes import NOT_NAMED
from pystack_nb.ragged import Rows
from pystack_nb.symbols import MappedFile, function_names
from pystack_nb.util import printable


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.definitions import Definitions
    from pystack_nb.ragged import Ints, Words
    from pystack_nb.records import Kind, Records

KERNEL_FILE = "[kernel]"
# The functions of CPython that run Python frames; a compiler may add ".cold" and the like.
_INTERPRETER = frozenset({"_PyEval_EvalFrameDefault", "_PyEval_Vector"})


class Stacks(NamedTuple):
    """Native and kernel stacks, innermost frame first.

    Attributes
    ----------
    ids : numpy.ndarray of int64, shape (n,)
        Rising.
    rows : Rows
        Ids of frame definitions.
    inner : numpy.ndarray of int64, shape (n,)
        How many frames lie inside the innermost frame of the interpreter.
    """

    ids: Ints
    rows: Rows
    inner: Ints

    def find(self, wanted: Ints) -> Ints:
        """Give the row of each stack id, or -1."""
        if not len(self.ids):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[at] == wanted, at, -1)

    def choose(self, rows: Ints, *, inner: NDArray[np.bool_] | None = None) -> Rows:
        """Take the stacks of these rows, none for -1; where `inner`, the inner frames alone."""
        starts = np.append(self.rows.starts, 0)[rows]
        counts = np.append(self.rows.counts, 0)[rows]
        if inner is not None:
            counts = np.where(inner, np.append(self.inner, 0)[rows], counts)
        return Rows(self.rows.flat, starts, counts)


def define_native_frames(records: Records, used: Ints, definitions: Definitions) -> Stacks:
    """Define the frames of the native and kernel stacks that samples name.

    A stack that has no frame, or one whose symbol is not in the file, is left out: the caller
    counts it as missing.

    Parameters
    ----------
    records : Records
        The spool file.
    used : numpy.ndarray of int64
        Stack ids that occur in samples.
    definitions : Definitions
        Gets the frames.
    """
    stacks = _read_stacks(records, used)
    symbols = _read_symbols(records)
    counts = stacks.heads["frame_count"].astype(np.int64)
    # Each frame is two words: the offset, and the symbol's id below its padding.
    words = Rows(records.words, stacks.starts + 2, 2 * counts).elements()
    offsets, symbol_ids = words[::2], (words[1::2] & np.uint64(0xFFFFFFFF)).astype(np.int64)

    ids, is_interpreter, of_frame = _define(offsets, symbol_ids, symbols, definitions)
    rows = Rows.packed(ids[of_frame], counts)
    inner = counts.copy()
    stack_of = np.repeat(np.arange(len(counts)), counts)
    marks = np.flatnonzero(is_interpreter[of_frame])
    np.minimum.at(inner, stack_of[marks], rows.positions()[marks])

    named = counts > 0
    named[stack_of[rows.flat < 0]] = False
    return Stacks(
        stacks.heads["stack_id"].astype(np.int64)[named],
        rows.take(np.flatnonzero(named)),
        inner[named],
    )


def _read_stacks(records: Records, used: Ints) -> Kind:
    """Read the stacks of these ids, sorted; of two with the same id, the first."""
    stacks = records.of(wire.RecordType.STACK, wire.STACK)
    counts = stacks.heads["frame_count"]
    stacks = records.keep(
        stacks,
        (counts <= wire.MAX_NATIVE)
        & (counts * np.int64(wire.NATIVE_FRAME.itemsize) <= stacks.tails),
    )
    ids, first = np.unique(stacks.heads["stack_id"], return_index=True)
    return stacks.take(first[np.isin(ids, used)])


def _read_symbols(records: Records) -> dict[int, tuple[int, str, MappedFile]]:
    """Read what symbol ids stand for: the kind, the text and, of a module, the file."""
    symbols = records.of(wire.RecordType.SYMBOL, wire.SYMBOL)
    symbols = records.keep(symbols, symbols.heads["length"] <= symbols.tails)
    read = {}
    for n, ((_, _, kind), symbol_id, length, *file) in enumerate(symbols.heads.tolist()):
        text = records.tail(symbols, n)[:length].decode("utf-8", "surrogateescape")
        read[symbol_id] = kind, text, MappedFile(*file)
    return read


def _define(
    offsets: Words,
    symbol_ids: Ints,
    symbols: dict[int, tuple[int, str, MappedFile]],
    definitions: Definitions,
) -> tuple[Ints, NDArray[np.bool_], Ints]:
    """Define each distinct frame: its id or -1, whether it is the interpreter; and the inverse."""
    of_symbol, used = pd.factorize(symbol_ids)
    of_offset, values = pd.factorize(offsets)
    key = of_symbol * np.int64(max(len(values), 1)) + of_offset
    _, first, of_frame = np.unique(key, return_index=True, return_inverse=True)
    ids = np.full(len(first), -1)
    is_interpreter = np.zeros(len(first), bool)
    for n, symbol_id in enumerate(used.tolist()):
        if symbol_id not in symbols:
            continue
        kind, text, mapped = symbols[symbol_id]
        chosen = np.flatnonzero(of_symbol[first] == n)
        if kind == wire.SymbolKind.KERNEL:
            functions, filename, name = [text] * len(chosen), KERNEL_FILE, "kernel"
        else:
            functions = function_names(text, offsets[first[chosen]], mapped)
            filename, name = text, "native"
        is_interpreter[chosen] = [x.partition(".")[0] in _INTERPRETER for x in functions]
        function = np.array([definitions.name(printable(x) or NOT_NAMED) for x in functions])
        file = np.full(len(chosen), definitions.name(printable(filename)))
        nothing = np.zeros(len(chosen), np.int64)
        ids[chosen] = definitions.add(name, function, file, nothing, nothing)
    return ids, is_interpreter, of_frame.reshape(-1)
