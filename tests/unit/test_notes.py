"""What a recording tells its user, however often it is said."""

from __future__ import annotations

from pystack_nb.collector.notes import Notes
from pystack_nb.collector.protocol import MessageType, encode


def test_what_was_said_more_than_once_is_told_once():
    notes = Notes()
    assert notes.add("a")
    assert notes.add("b")
    assert not notes.add("a")
    assert notes.sentences() == ["a", "b"]


def test_as_many_and_as_long_notes_as_may_be_fit_into_a_message():
    notes = Notes()
    for n in range(1000):
        notes.add(f"{n}" + "\U0001f40d" * 4096)
    assert encode(MessageType.OK, {"notes": notes.sentences(), "message": "\U0001f40d" * 1000})
    assert notes.sentences()[-1] == "988 more notes were left out"
