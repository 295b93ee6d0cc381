"""What a recording tells its user beside what it recorded."""

from __future__ import annotations


# Together they fit into one message, whatever its characters need there.
_MAX_NOTES = 12
_MAX_LENGTH = 300


class Notes:
    """Sentences, each told once, and not more than fit into a message."""

    def __init__(self) -> None:
        self._told: dict[str, None] = {}
        self._left_out = 0

    def add(self, text: str) -> bool:
        """Take a sentence; return whether it is a new one that is told."""
        text = text[:_MAX_LENGTH]
        if text in self._told:
            return False
        if len(self._told) == _MAX_NOTES:
            self._left_out += 1
            return False
        self._told[text] = None
        return True

    def sentences(self) -> list[str]:
        """Return what to tell."""
        rest = [f"{self._left_out} more notes were left out"] if self._left_out else []
        return [*self._told, *rest]
