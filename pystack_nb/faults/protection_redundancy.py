"""Protections that compute something twice: duplicated execution and checksums."""

from __future__ import annotations

import functools
import math

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torch import nn
from torch.utils import _pytree as pytree

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, structures
from pystack_nb.faults.protection_guards import Defence, Guard, check_action


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pystack_nb.faults.layers import Layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Duplicate(Defence):
    """Runs layers twice and compares every stored bit of what they give.

    Finds faults that strike one of the runs.  Wrong weights and inputs are the same in both
    and are not found.  The model has to be in eval mode, and to compute the same twice: on a
    GPU ask for it by ``torch.use_deterministic_algorithms(True)``.

    Parameters
    ----------
    layers : sequence of str, optional
        Which to run twice; the innermost ones if none is named.
    action : {"raise", "record", "correct"}
        Raise `FaultDetectedError`, count and go on, or run a third time and go on with what
        two of the three agree on (raising if there is no such).
    """

    layers: Sequence[str] | None = None
    action: str = "raise"

    def __post_init__(self) -> None:
        check_action(self, self.action)

    def guard(self, layer: Layer) -> Guard:
        """Make what runs a layer twice."""
        return _Twice(layer, self.action)


class _Twice(Guard):
    def __init__(self, layer: Layer, action: str) -> None:
        super().__init__(layer)
        self._action = action

    def before(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.layer.module.training:
            raise FaultError(
                f"layer {self.layer.name!r} is in training mode, where two runs may differ and"
                " change its state: call model.eval() before it is run under Duplicate()"
            )
        # Runs beside the one that counts are given copies, for layers that overwrite theirs.
        spare = None
        if self._action == "correct":
            spare = functools.partial(_run_on_copies, run, *_copies((args, kwargs)))
        return _run_on_copies(run, args, kwargs), spare

    def after(self, output: Any, kept: Any, again: Callable[[], Any]) -> Any:
        del again
        second, spare = kept
        if _same(output, second):
            return output
        self.count(detections=1)
        if self._action == "record":
            return output
        if self._action == "correct":
            third = spare()
            if _same(third, second) or _same(third, output):
                self.count(corrections=1)
                return third
        return self.raise_detected("two runs differ")


@dataclass(frozen=True)
class Checksum(Defence):
    r"""Compares the sum over a layer's output channels with what a checksum of its weights gives.

    Algorithm-based fault tolerance (K.-H. Huang, J. A. Abraham, "Algorithm-Based Fault
    Tolerance for Matrix Operations", IEEE Trans. Computers C-33, 1984) for `torch.nn.Linear`
    and `torch.nn.Conv1d` to `Conv3d`, groups included.  The column checksums
    :math:`c = \sum_k W_k`, :math:`d = \sum_k b_k` are taken when the protection starts: weights
    that change later are found, those that are wrong already are not.

    Parameters
    ----------
    layers : sequence of str, optional
        Which to check; all of these kinds if none is named.
    action : {"raise", "record", "correct"}
        Raise `FaultDetectedError`, count and go on, or run the layer again and go on with
        what it gives (raising if the sums still differ: then it's the weights).
    scale : float
        Multiplies the threshold; below 1 it finds smaller faults and may give false alarms.

    Notes
    -----
    At each position of the output, with fan-in :math:`m`, :math:`K` output channels in a group,
    :math:`\gamma_n = nu / (1 - nu)` and the unit roundoff :math:`u`, the sums are taken for
    different if

    .. math:: |\sum_k y_k - (c x + d)| > (\gamma_{m+K} + \gamma_{m+2} + v)\,A,
              \qquad A = \sum_k |W_k| |x| + |b_k|.

    By N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1,
    each :math:`y_k` is within :math:`\gamma_{m+1}` of its terms' absolute sum in whatever order
    they are added, and summing :math:`K` of them adds :math:`\gamma_{K-1}`; the right side has
    :math:`m + 1` terms and weights that were rounded once.  So there are no false alarms in
    ordinary arithmetic, however the terms are ordered.  float16 and bfloat16 are taken to be
    accumulated in float32 and rounded where they are stored, which :math:`v` allows for, as for
    TF32 products on a GPU that has them switched on.  A fault that moves the sum by less than
    the threshold is not found: the bound is the worst case, typical errors are near its square
    root in :math:`m`.
    """

    layers: Sequence[str] | None = None
    action: str = "raise"
    scale: float = 1.0

    kinds = (nn.Linear, *_CONVOLUTIONS)

    def __post_init__(self) -> None:
        check_action(self, self.action)
        if not self.scale > 0:
            raise FaultError(f"a threshold can't be scaled by {self.scale}: give more than 0")

    def guard(self, layer: Layer) -> Guard:
        """Take the checksums of a layer."""
        if not self.usual(layer.module):
            raise FaultError(
                f"layer {layer.name!r} is a {layer.type}: checksums are for Linear and Conv1d to"
                " Conv3d, name those or none"
            )
        return _Sums(layer, self.action, self.scale)


class _Sums(Guard):
    def __init__(self, layer: Layer, action: str, scale: float) -> None:
        super().__init__(layer)
        self._action = action
        module: Any = layer.module
        weight = module.weight.detach()
        self._groups = int(getattr(module, "groups", 1))
        self._outputs = len(weight) // self._groups
        self._dims = weight.dim()
        self._fan_in = math.prod(weight.shape[1:])
        self._dtype = torch.promote_types(weight.dtype, torch.float32)
        self._stored = weight.dtype
        self._scale = scale
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
        self._signed = self._column(weight), self._column(bias)
        self._absolute = self._column(weight.abs()), self._column(bias.abs())

    def before(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del run
        return args[0] if args else kwargs["input"]

    def after(self, output: Any, kept: Any, again: Callable[[], Any]) -> Any:
        with torch.no_grad():
            wrong = self._differs(output, kept)
        if self._action == "record":
            self.count(detections=wrong)
            return output
        if not wrong:
            return output
        self.count(detections=1)
        if self._action == "correct":
            output = again()
            with torch.no_grad():
                wrong = self._differs(output, kept)
            if not wrong:
                self.count(corrections=1)
                return output
        return self.raise_detected("a checksum differs")

    def _differs(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x, device = x.to(self._dtype), x.device.type
        mixed = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            expected = self._apply(x, *self._signed)
            terms = self._apply(x.abs(), *self._absolute)
        channel = 1 - self._dims
        found = self._parts(output, channel).sum(channel, dtype=self._dtype)
        bound = self._bound(output.dtype, device == "cuda")
        # NaN, in the output or in what is expected, is no agreement.
        close: torch.Tensor = (found - expected).abs() <= bound.factor * terms + bound.least
        return ~close.all()

    def _apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        module: Any = self.layer.module
        if isinstance(module, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        # The convolution's own way of padding and striding, with other weights.
        result: torch.Tensor = module._conv_forward(x, weight, bias)  # noqa: SLF001
        return result

    def _column(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._parts(tensor.double(), -tensor.dim()).sum(1).to(self._dtype)

    def _parts(self, tensor: torch.Tensor, channel: int) -> torch.Tensor:
        # Splits the dimension of channels, counted from the end, into groups and theirs.
        at, shape = tensor.dim() + channel, tensor.shape
        return tensor.reshape(*shape[:at], self._groups, self._outputs, *shape[at + 1 :])

    def _bound(self, stored: torch.dtype, cuda: bool) -> Bound:
        unit = torch.finfo(self._dtype).eps / 2
        terms = self._fan_in + self._outputs
        extra = 0.0
        if torch.finfo(stored).bits < torch.finfo(self._dtype).bits:
            # Rounded when stored; under autocast weights and inputs, too.
            extra = torch.finfo(stored).eps / 2 * (1 if stored == self._stored else 3)
        if cuda and self._dtype == torch.float32 and _tf32():
            extra += 4 * 2.0**-11
        error = _gamma(self._fan_in + 2, unit)
        factor = (_gamma(terms, unit) + error + extra) * self._scale
        # The sum of absolute terms is itself rounded, and tiny products become zero.
        return Bound(factor / (1 - error), terms * torch.finfo(self._dtype).tiny)


class Bound(NamedTuple):
    """How far two sums may differ: ``factor`` times their absolute terms, plus ``least``."""

    factor: float
    least: float


def _gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)


def _tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def _copies(given: Any) -> Any:
    # One and the same tensor stays so: attention looks whether its query is its key.
    if len(given[0]) == 1 and type(given[0][0]) is torch.Tensor and not given[1]:
        return (given[0][0].clone(),), {}
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return copies.setdefault(id(tensor), tensor.clone())

    return pytree.tree_map_only(torch.Tensor, copy, given)


def _run_on_copies(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _copies((args, kwargs))
    return run(*args, **kwargs)


def _same(left: Any, right: Any) -> bool:
    paths = structures.outputs(left)
    if paths != structures.outputs(right):
        return False
    pairs = ((structures.get(left, p), structures.get(right, p)) for p in paths.values())
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits.stored(a), bits.stored(b))
        for a, b in pairs
    )
