"""Operations through which a rounding error can become any error at all.

What most layers give moves by about as much as what they take.  A comparison doesn't, nor does
a rounding to whole numbers, as in fake quantisation, or a logarithm near zero: the last bit of
what they take may decide.  How far a batch is off says nothing of what lies behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pystack_nb.faults.engine_steps import arguments_of, ids, mutated, name_of
from pystack_nb.faults.engine_trace import Ref


if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import torch

    from pystack_nb.faults.engine_trace import Step

# What jumps.  Comparisons, arguments of maxima, casts to integers and the like are known by
# what they give.
_JUMPING = frozenset(
    [
        "angle",
        "atan2",
        "bernoulli",
        "ceil",
        "copysign",
        "fix",
        "floor",
        "floor_divide",
        "fmod",
        "frac",
        "hardshrink",
        "heaviside",
        "nextafter",
        "remainder",
        "round",
        "sgn",
        "sign",
        "tan",
        "trunc",
    ]
)

# What is infinitely steep somewhere, or gives no number beyond: at zero, and elsewhere.
_STEEP_AT_ZERO = frozenset(["float_power", "log", "log10", "log1p", "log2", "pow", "sqrt"])
_STEEP = frozenset(
    [
        "acos",
        "acosh",
        "arccos",
        "arccosh",
        "arcsin",
        "arctanh",
        "asin",
        "atanh",
        "erfinv",
        "logit",
        "special_erfinv",
        "special_logit",
        "xlogy",
    ]
)

# What gives numbers above zero whose errors are small beside themselves, and not only beside
# others that they came of: of these, functions that are steep at zero move little.
_WELL_CONDITIONED = frozenset(
    ["exp", "linalg_vector_norm", "norm", "sigmoid", "softmax", "softplus", "square", "var"]
)
_KEEPS_CONDITION = frozenset(
    [
        "_same",
        "alias",
        "cat",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "expand_as",
        "flatten",
        "mean",
        "permute",
        "reshape",
        "select",
        "slice",
        "sqrt",
        "squeeze",
        "stack",
        "sum",
        "t",
        "to",
        "transpose",
        "unsqueeze",
        "view",
    ]
)


def last_jump(
    steps: Sequence[Step],
    exact: Sequence[bool],
    tensors: Sequence[torch.Tensor],
    output: Iterable[int],
) -> int:
    """Find the position from which on rounding errors stay about as small as they are.

    Parameters
    ----------
    steps : sequence of Step
        What runs.
    exact : sequence of bool
        Whether each step gives a row the same bits in any batch.
    tensors : sequence of torch.Tensor
        By number, with their types and storages.
    output : iterable of int
        The outputs' numbers.

    Returns
    -------
    int
        Behind the last step that jumps, or is steep where it may matter, among those that take
        what may have been rounded otherwise and that an output of floating point hangs on; 0 if
        there is none.
    """
    places = [x.untyped_storage()._cdata for x in tensors]  # noqa: SLF001

    def memory(numbers: Iterable[Any]) -> set[int]:
        return {places[i] for i in numbers if i is not None}

    taken = [memory(ids(x.args, x.kwargs)) for x in steps]
    given = [memory([*ids(x.out), *mutated(x)]) for x in steps]
    rounded, sound = set[int](), set[int]()
    found: dict[int, set[int]] = {}
    for k, step in enumerate(steps):
        numbers = [
            i
            for i in ids(step.args, step.kwargs)
            if places[i] in rounded and tensors[i].is_floating_point()
        ]
        if numbers and step.site is None:
            if _jumps(step) or _is_steep(step, sound):
                found[k] = given[k]
            else:
                found[k] = memory(i for i in ids(step.out) if _is_whole(tensors[i]))
        if not exact[k] or not rounded.isdisjoint(taken[k]):
            rounded |= given[k]
        made = {*ids(step.out), *mutated(step)}
        sound = sound | made if _is_well_conditioned(step, sound) else sound - made
    needed = memory(i for i in output if not _is_whole(tensors[i]))
    for k in range(len(steps) - 1, -1, -1):
        if not needed.isdisjoint(found.get(k, ())):
            return k + 1
        if not needed.isdisjoint(given[k]):
            needed |= taken[k]
    return 0


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _plain(step: Step) -> str:
    return name_of(step).removesuffix("_")


def _jumps(step: Step) -> bool:
    name, given = _plain(step), arguments_of(step)
    return (
        name in _JUMPING
        or "fake_quant" in name
        or (name == "div" and given.get("rounding_mode") is not None)
        or (name == "threshold" and given.get("threshold") != given.get("value"))
        or ("grid_sampler" in name and given.get("interpolation_mode") == 1)
    )


def _is_steep(step: Step, sound: Collection[int]) -> bool:
    name = _plain(step)
    if name in _STEEP:
        return True
    exponent = arguments_of(step).get("exponent", 0.5)
    if name not in _STEEP_AT_ZERO or (isinstance(exponent, int | float) and exponent >= 1):
        return False
    return not all(i in sound for i in ids(step.args, step.kwargs))


def _is_well_conditioned(step: Step, sound: Collection[int]) -> bool:
    """Whether a step loses nothing to a difference of numbers, as sums of squares do not."""
    name, given, named = _plain(step), ids(step.args, step.kwargs), arguments_of(step)
    if name in _WELL_CONDITIONED:
        return True
    if name == "pow":
        return bool(named.get("exponent") == 2)
    if name == "mul" and len(given) == 2 and given[0] == given[1]:
        return True
    if name in {"add", "clamp_min", "div", "mul"}:
        others = [*step.args[1:2], named.get("alpha", 1)]
        constants = [x for x in others if not isinstance(x, Ref)]
        if not all(isinstance(x, int | float) and x > 0 for x in constants):
            return False
    elif name not in _KEEPS_CONDITION:
        return False
    return all(i in sound for i in given)
