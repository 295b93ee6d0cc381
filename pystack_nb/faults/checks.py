"""Checks of what a campaign is given."""

from __future__ import annotations

import operator

from typing import Any

from pystack_nb.errors import CampaignError


def check_is(value: Any, kind: Any, name: str, wanted: str) -> None:
    """Raise a CampaignError that says what is wanted if a value is of no such kind."""
    if not isinstance(value, kind):
        raise CampaignError(f"{name} is {type(value).__name__} {value!r:.60}; pass {wanted}")


def whole(value: Any, name: str, least: int) -> int:
    """Give a whole number, or raise a CampaignError if it is none or too small."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise CampaignError(f"{name}={value!r} can't be; pass a whole number, {least} or more")
    return number
