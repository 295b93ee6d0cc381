"""The sampling rate: its default, and how one is read from a command line."""

from __future__ import annotations

import argparse
import math

from pystack_nb.errors import RateError


# A prime, so that it can't run in step with a loop.
DEFAULT_HZ = 499


def parse_rate(text: str) -> int:
    """Read a rate, such as ``999`` or ``1e3``, as argparse's ``type=``.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is no whole number.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number: give one such as 999")
    return int(rate)


def checked_rate(hz: int) -> int:
    """Return a rate that was given in Python.

    Raises
    ------
    RateError
        If it is no whole number above 0.
    """
    known: object = hz  # a caller without a type checker may give anything
    if isinstance(known, bool) or not isinstance(known, int) or hz < 1:
        raise RateError(
            f"{hz!r} is no sampling rate: choose a whole number of samples a second, such as "
            f"{DEFAULT_HZ}."
        )
    return hz
