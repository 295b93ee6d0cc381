"""What is known of numbers by what they are made of, and of functions that are steep somewhere.

A function that is steep at zero, as a logarithm is, makes large errors of small ones there.  It
is used all the same, of numbers that stay away from zero: of exponentials, of norms, with
something added.  Vectors that are normalised count among them, unless they are nothing but
rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pystack_nb.faults.engine_steps import arguments_of, ids, mutated, name_of, needs
from pystack_nb.faults.engine_trace import Ref


if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import torch

    from pystack_nb.faults.engine_trace import Step

_SAME = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "multiply": "mul",
    "true_divide": "div",
}

_STEEP = frozenset(
    [
        "acos",
        "acosh",
        "asin",
        "atanh",
        "binary_cross_entropy",
        "digamma",
        "entr",
        "erfinv",
        "kl_div",
        "lgamma",
        "logit",
        "mvlgamma",
        "ndtri",
        "poisson_nll_loss",
        "polygamma",
        "xlog1py",
        "xlogy",
    ]
)
NORMS = frozenset(["cdist", "dist", "linalg_norm", "linalg_vector_norm", "norm"])
_APART = frozenset(["_softmax", "cosh", "exp", "exp2", "sigmoid", "softmax", "softplus"])
_POSITIVE = frozenset(["abs", "relu", "relu6"])
_POWERS = {"square": 2, "var": 2, "var_mean": 2, "std": 1, "std_mean": 1, "hypot": 1}
_KEEPING = frozenset(
    [
        "_same",
        "_adaptive_avg_pool2d",
        "_to_copy",
        "_unsafe_view",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "alias",
        "amax",
        "amin",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "cat",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "expand_as",
        "flatten",
        "mean",
        "permute",
        "repeat",
        "reshape",
        "select",
        "slice",
        "squeeze",
        "stack",
        "sum",
        "t",
        "to",
        "transpose",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    ]
)
# Added to numbers that are not below zero, and to squares, whose errors vanish with them.
_FAR, _FAR_FROM_SQUARES = 1e-3, 1e-10
_ABOUT_1 = 0.999  # three times a third, too


class Facts(NamedTuple):
    """What is known of a tensor's numbers.

    Attributes
    ----------
    positive : bool
        None is below zero.
    apart : bool
        They are far from zero beside their errors.
    power : float
        They are sums of such powers of other numbers, whose root is a norm; 0 for others.
    """

    positive: bool = False
    apart: bool = False
    power: float = 0


_NOTHING = Facts()


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers are whole, or truth values: none is rounded."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def plain(step: Step) -> str:
    """Give the one name of an operation that has several."""
    name = name_of(step).removesuffix("_").removeprefix("special_")
    return _SAME.get(name, name)


def as_number(value: Any) -> float | None:
    """Give a plain number, None for anything else."""
    return float(value) if isinstance(value, int | float) else None


def _far(power: float) -> float:
    return _FAR_FROM_SQUARES if power >= 2 else _FAR


@dataclass
class Known:
    """What is known of the numbers that some steps have made.

    Attributes
    ----------
    places : sequence of int
        The memory of each tensor, by number.
    varying : set of int
        The inputs, and what hangs on them.
    rounded, learned : set of int
        Memory of what may be rounded otherwise in a batch, and of what hangs on parameters.
    """

    places: Sequence[int]
    varying: set[int]
    rounded: set[int] = field(default_factory=set)
    learned: set[int] = field(default_factory=set)
    _facts: dict[int, Facts] = field(default_factory=dict)

    def see(self, step: Step, *, exact: bool, taken: set[int], given: set[int]) -> None:
        """Note what a step gives."""
        if not exact or not self.rounded.isdisjoint(taken):
            self.rounded |= given
        constants = [i for i in ids(step.args, step.kwargs) if i not in self.varying]
        if needs(step)[0] or constants or not self.learned.isdisjoint(taken):
            self.learned |= given
        self.varying.update(ids(step.out))
        found = self._found(step)
        changed = {i for i in mutated(step) if i is not None}
        overwritten = {self.places[i] for i in changed}
        for number in [i for i in self._facts if self.places[i] in overwritten]:
            del self._facts[number]
        # Of several outputs the first one is meant.
        self._facts |= dict.fromkeys([*changed, *ids(step.out)[:1]], found)

    def is_steep(self, step: Step) -> bool:
        """Whether the errors of what a step takes may become much larger in what it gives."""
        name, value = plain(step), step.args[0] if step.args else None
        if name in {"log", "log2", "log10"}:
            return not self._of(value).apart
        if name == "log1p":
            return not self._of(value).positive
        if name in {"pow", "float_power", "sqrt"}:
            return self._is_steep_power(value, arguments_of(step).get("exponent", 0.5))
        if name in {"div", "reciprocal", "rsqrt"}:
            divisor = step.args[1] if name == "div" else value
            return self._is_pole(divisor, 0.5 if name == "rsqrt" else 1)
        return name in _STEEP

    def _of(self, value: Any) -> Facts:
        if isinstance(value, Ref):
            return self._facts.get(value.id, _NOTHING)
        number = as_number(value)
        return Facts(positive=number >= 0, apart=number > 0) if number is not None else _NOTHING

    def _is_steep_power(self, base: Any, exponent: Any) -> bool:
        degree = as_number(exponent)
        if not isinstance(base, Ref) or degree is None:
            return not self._of(base).apart
        if degree < 0:
            return self._is_pole(base, -degree)
        if degree < 1:
            return not self._has_root(base, degree)
        return not (degree.is_integer() or self._of(base).positive)

    def _has_root(self, value: Any, degree: float) -> bool:
        """Whether a root is a norm, or of what is far from zero."""
        return self._of(value).apart or self._of(value).power * degree >= _ABOUT_1

    def _is_pole(self, value: Any, degree: float) -> bool:
        """Whether a fault may bring what is divided by near zero."""
        if not isinstance(value, Ref):
            return False
        touched = self.places[value.id] in self.rounded & self.learned
        return touched and not self._has_root(value, degree)

    def _found(self, step: Step) -> Facts:
        name = plain(step)
        if name in _APART:
            return Facts(positive=True, apart=True)
        if name in _POWERS or name in NORMS:
            return Facts(positive=True, power=_POWERS.get(name, 1))
        find = next((find for names, find in _RULES if name in names), None)
        return _NOTHING if find is None else find(self, step)

    def _of_clamped(self, step: Step) -> Facts:
        least, (positive, apart, power) = arguments_of(step).get("min"), self._of(step.args[0])
        least = as_number(least)
        if least is None:
            return _NOTHING
        return Facts(positive or least >= 0, apart or least >= _far(power), power)

    def _of_positive_part(self, step: Step) -> Facts:
        _, apart, power = self._of(step.args[0])
        return Facts(positive=True, apart=apart, power=power)

    def _of_power(self, step: Step) -> Facts:
        base, degree = step.args[0], as_number(arguments_of(step).get("exponent", 0.5))
        of_base = self._of(base)
        if not isinstance(base, Ref):
            return Facts(of_base.positive, of_base.apart)
        if degree is None or degree <= 0:
            return _NOTHING
        positive = of_base.positive or degree % 2 == 0
        power = degree * max(of_base.power, float(positive))
        return Facts(positive, of_base.apart, power if power >= _ABOUT_1 else 0)

    def _of_two(self, step: Step) -> Facts:
        name, pair = plain(step), step.args[:2]
        if name == "mul" and isinstance(pair[0], Ref) and pair[0] == pair[1]:
            return Facts(positive=True, power=2)
        one, other = (self._of(x) for x in pair)
        number = next((x for x in map(as_number, pair) if x is not None), None)
        if not (one.positive and other.positive) or arguments_of(step).get("alpha", 1) != 1:
            return _NOTHING
        apart = one.apart and other.apart
        powers = [
            x.power for x, value in zip((one, other), pair, strict=True) if as_number(value) is None
        ]
        power = min(powers, default=0)
        if name == "add":
            far = number is not None and number >= _far(power)
            return Facts(True, apart or far, power)
        scaled = number is not None and (name == "mul" or as_number(pair[1]) is not None)
        return Facts(True, apart, power if scaled else 0)

    def _of_kept(self, step: Step) -> Facts:
        found = [self._facts.get(i, _NOTHING) for i in ids(step.args[:1])]
        positive, apart = all(x.positive for x in found), all(x.apart for x in found)
        return Facts(positive, apart, min((x.power for x in found), default=0))


_RULES: list[tuple[Collection[str], Callable[[Known, Step], Facts]]] = [
    ({"clamp", "clamp_min"}, Known._of_clamped),  # noqa: SLF001
    ({"pow", "float_power", "sqrt"}, Known._of_power),  # noqa: SLF001
    ({"add", "mul", "div"}, Known._of_two),  # noqa: SLF001
    (_POSITIVE, Known._of_positive_part),  # noqa: SLF001
    (_KEEPING, Known._of_kept),  # noqa: SLF001
]
