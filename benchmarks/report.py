"""Medians, spreads and the table."""

from __future__ import annotations

import operator
import statistics

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_Condition = TypeVar("_Condition")
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity, and how it came out in each round.

    Attributes
    ----------
    what, unit
        The quantity.
    values
        One per round.
    target
        What is aimed at, in words; empty for what stands there for comparison.
    missing
        Why there are no values, if there are none.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    target: str = ""
    missing: str = ""

    @property
    def median(self) -> float:
        """Middle of the values."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Where the middle half of the values begins and ends."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def is_met(self) -> bool:
        """Whether the median is as aimed at; each of the values, where that is a number alone."""
        if not self.target:
            return True
        if not self.values:
            return False
        sign, _, bound = self.target.rpartition(" ")
        if sign:
            return bool(_COMPARISONS[sign](self.median, float(bound)))
        return all(value == float(bound) for value in self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return it with its summary, for JSON."""
        if not self.values:
            return asdict(self)
        low, high = self.quartiles
        return asdict(self) | {"median": self.median, "quartile_1": low, "quartile_3": high}


def row(what: str, unit: str, values: Iterable[float], target: str = "") -> Row:
    """Make a row of the values of all rounds."""
    return Row(what, unit, tuple(values), target)


def missing(what: str, reason: str, target: str = "") -> Row:
    """Make a row of a quantity that could not be measured, which a table must not hide."""
    return Row(what, "", (), target, reason)


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows: median, quartiles, number of rounds, and the target."""
    width = max(len(each.what) for each in rows)
    print(f"\n{title}")
    print(f"  {'':{width}}  {'median':>9}  {'middle half':>19}  {'n':>3}  {'':8}target")
    reasons = list(dict.fromkeys(each.missing for each in rows if not each.values))
    for each in rows:
        if not each.values:
            note = f"not measured [{reasons.index(each.missing) + 1}]"
            print(f"  {each.what:{width}}  {note:>35}  {'':8}{each.target}".rstrip())
            continue
        low, high = (_number(x) for x in each.quartiles)
        spread = f"{low} .. {high}"
        print(
            f"  {each.what:{width}}  {_number(each.median):>9}  {spread:>19}"
            f"  {len(each.values):>3}  {each.unit:8}{each.target}".rstrip()
        )
    for number, reason in enumerate(reasons, 1):
        print(f"  [{number}] {reason}")


def _number(value: float) -> str:
    if value == int(value) and abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def rotated(conditions: Sequence[_Condition], number: int) -> list[_Condition]:
    """Return the order for a round: each condition stands at each place, and runs both ways."""
    turn, place = divmod(number, len(conditions))
    order = [*conditions[place:], *conditions[:place]]
    return order[::-1] if turn % 2 else order
