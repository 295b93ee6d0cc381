"""Python frames of a spool file: code ids and instructions into names and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pystack_nb import wire
from pystack_nb.linetable import decode_lines
from pystack_nb.util import printable


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.definitions import Definitions
    from pystack_nb.ragged import Ints, Words
    from pystack_nb.records import Records

NOT_NAMED = "[not named]"
_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}


class Code(NamedTuple):
    """A code object; `lines` has one line for each code unit."""

    function: str
    filename: str
    first_line: int
    lines: NDArray[np.int32]


def define_python_frames(
    records: Records, frames: Words, definitions: Definitions
) -> tuple[Ints, NDArray[np.bool_]]:
    """Define what distinct Python frames stand for.

    Parameters
    ----------
    records : Records
        The spool file.
    frames : numpy.ndarray of uint64, shape (n,)
        Each a ``struct pst_frame``, no two equal.
    definitions : Definitions
        Gets the frames.

    Returns
    -------
    ids : numpy.ndarray of int64, shape (n,)
        Of their definitions.
    missing : numpy.ndarray of bool, shape (n,)
        Whether the frame's name or its line is not known.
    """
    code_ids = (frames & np.uint64(0xFFFFFFFF)).astype(np.int64)
    instructions = (frames >> np.uint64(32)).astype(np.uint32).view(np.int32)
    used, of_code = np.unique(code_ids, return_inverse=True)
    codes = read_codes(records, used)
    lines = np.zeros(len(frames), np.int64)
    missing = np.zeros(len(frames), bool)
    names = np.zeros((len(used), 3), np.int64)
    order = np.argsort(of_code, kind="stable")
    bounds = np.searchsorted(of_code[order], np.arange(len(used) + 1))
    for n, code_id in enumerate(used.tolist()):
        rows = order[bounds[n] : bounds[n + 1]]
        code = codes.get(code_id)
        if code is None:
            missing[rows] = True
            names[n] = definitions.name(NOT_NAMED), definitions.name(""), 0
            continue
        names[n] = definitions.name(code.function), definitions.name(code.filename), code.first_line
        lines[rows], missing[rows] = _lines(code, instructions[rows])
    function, filename, first_line = names[of_code].T
    return definitions.add("python", function, filename, lines, first_line), missing


def read_codes(records: Records, wanted: Ints) -> dict[int, Code]:
    """Put the code objects of these ids together; those with a part missing are left out."""
    codes = records.of(wire.RecordType.CODE, wire.CODE)
    first_lines = dict(
        zip(codes.heads["code_id"].tolist(), codes.heads["first_line"].tolist(), strict=True)
    )
    texts = _read_texts(records, wanted)
    named: dict[int, Code] = {}
    for code_id in wanted.tolist():
        filename, qualname, table = (texts.get((code_id, x)) for x in wire.TextPart)
        if code_id not in first_lines or filename is None or qualname is None:
            continue
        first_line = max(first_lines[code_id], 0)
        lines = decode_lines(table[1], first_line) if table else np.zeros(0, np.int32)
        try:
            named[code_id] = Code(_decode(*qualname), _decode(*filename), first_line, lines)
        except (UnicodeDecodeError, LookupError):
            continue
    return named


def _read_texts(records: Records, wanted: Ints) -> dict[tuple[int, int], tuple[int, bytes]]:
    """Join the pieces of each code object's texts: its character size and its bytes."""
    pieces = records.of(wire.RecordType.TEXT, wire.TEXT)
    pieces = pieces.take(np.isin(pieces.heads["code_id"], wanted))
    heads = pieces.heads
    order = np.lexsort((heads["offset"], heads["part"], heads["code_id"]))
    joined: dict[tuple[int, int], tuple[int, int, bytearray]] = {}
    for n in order.tolist():
        _, code_id, part, char_size, offset, total = heads[n].item()
        _, _, text = joined.setdefault((code_id, part), (char_size, total, bytearray()))
        # A piece that came twice, or one behind a hole, adds nothing.
        if offset == len(text):
            text += records.tail(pieces, n)
    return {
        key: (char_size, bytes(text[:total]))
        for key, (char_size, total, text) in joined.items()
        if len(text) >= total
    }


def _decode(char_size: int, text: bytes) -> str:
    encoding = _ENCODINGS[char_size]
    return printable(text.decode(encoding, "strict" if char_size == 1 else "surrogatepass"))


def _lines(code: Code, instructions: NDArray[np.int32]) -> tuple[Ints, NDArray[np.bool_]]:
    inside = (instructions >= 0) & (instructions < len(code.lines))
    lines = np.zeros(len(instructions), np.int64)
    lines[inside] = code.lines[instructions[inside]]
    # A frame that has not begun stands at its first line.
    not_begun = instructions == -1
    lines[not_begun] = code.first_line
    return lines, ~inside & ~not_begun
