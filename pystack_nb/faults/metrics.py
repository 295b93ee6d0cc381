"""What counts as a wrong output: metrics that compare faulty outputs with golden ones."""

from __future__ import annotations

import math
import numbers

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a metric says of ``n`` outputs.

    Attributes
    ----------
    changed : torch.Tensor of bool, shape (n,)
        Whether the output is wrong.
    score : torch.Tensor of float64, shape (n,)
        The metric's own number, NaN where it has none.
    lead : torch.Tensor of float64, shape (n,), or None
        By how much the numbers on which the verdict and the score hang would have to move to
        change them; None, as by default, if every last bit matters.
    """

    changed: torch.Tensor
    score: torch.Tensor
    lead: torch.Tensor | None = None


class Metric(ABC):
    """Says of each row of a batch of outputs whether a fault has made it wrong.

    A function of one sample is simpler, see `Function`; a metric of whole batches is quicker.

    Examples
    --------
    >>> class Sign(faults.Metric):
    ...     def judge(self, golden, faulty, labels):
    ...         off = ((golden > 0) != (faulty > 0)).flatten(1).sum(1)
    ...         return faults.Verdict(changed=off > 0, score=off.double())
    """

    needs_labels: bool = False
    decides_by_rank: bool = False

    @abstractmethod
    def judge(
        self, golden: torch.Tensor, faulty: torch.Tensor, labels: torch.Tensor | None
    ) -> Verdict:
        """Compare outputs.

        Parameters
        ----------
        golden, faulty : torch.Tensor, shape (n, ...)
            The model's output without and with the fault, a row per sample.
        labels : torch.Tensor, shape (n, ...), or None
            What is known to be right.

        Returns
        -------
        Verdict
            Of each row.
        """

    def judge_all(
        self,
        golden: Sequence[torch.Tensor],
        faulty: Sequence[torch.Tensor],
        labels: torch.Tensor | None,
    ) -> Verdict:
        """Compare outputs of several tensors: by the first floating one, unless overridden."""
        at = main_output(golden)
        return self.judge(golden[at], faulty[at], labels)


@dataclass(frozen=True)
class TopK(Metric):
    """Wrong if the golden output's class is no longer among the ``k`` largest.

    Of several tensors of an output the first floating one is judged.  Of equal numbers the
    first is the larger.

    Parameters
    ----------
    k : int
        1 is the predicted class itself.
    where_right : bool
        Count a change only where the golden class is the label; needs labels.
    class_dim : int, optional
        The dimension of the classes in an output that has a class for each token or pixel, of
        which one that is wrong makes it wrong.  Counted from the end: -1 for tokens, -3 for
        ``(samples, classes, height, width)``.  Without it such outputs are refused.

    Notes
    -----
    ``score`` is the share of labels that are among the ``k`` largest, NaN without labels.
    """

    k: int = 5
    where_right: bool = False
    class_dim: int | None = None
    decides_by_rank = True

    def __post_init__(self) -> None:
        k: Any = self.k
        if not isinstance(k, int) or k < 1:
            raise CampaignError(f"there are no {self.k} largest classes: give k=1 or more")
        if self.class_dim is not None and not self.class_dim < 0:
            raise CampaignError(
                f"class_dim={self.class_dim} does not count from the end: give -1 for the last"
                " dimension, -3 for (samples, classes, height, width)"
            )

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether labels have to be there."""
        return self.where_right

    def judge(
        self, golden: torch.Tensor, faulty: torch.Tensor, labels: torch.Tensor | None
    ) -> Verdict:
        """Compare the places of classes; see `Metric.judge`."""
        golden, faulty = self._classes_last(golden), self._classes_last(faulty)
        if golden.isnan().any():
            raise CampaignError(
                "without any fault the model gives NaN for a class, so that no class is the"
                " largest: leave such samples out, or give another metric"
            )
        wanted = golden.argmax(-1)
        inside, lead = self._among(faulty, wanted)
        score = torch.full(inside.shape, torch.nan, dtype=torch.float64, device=inside.device)
        changed = ~inside
        if labels is not None:
            known = _as_classes(labels.to(wanted.device), wanted, golden.shape[-1])
            right, other = self._among(faulty, known)
            score, lead = right.double(), torch.minimum(lead, other)
            if self.where_right:
                changed &= wanted == known
        rows = len(golden)
        return Verdict(
            changed.reshape(rows, -1).any(1),
            score.reshape(rows, -1).mean(1),
            lead.reshape(rows, -1).amin(1),
        )

    def _classes_last(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.class_dim is None:
            single = outputs.dim() > 1 and outputs.shape[1:].numel() == outputs.shape[-1]
            if outputs.dim() > 1 and not single:
                raise CampaignError(
                    f"an output of shape {tuple(outputs.shape[1:])} has more than one class: say"
                    " which dimension the classes are, as in Top1(class_dim=-1) for tokens and"
                    " class_dim=-3 for images of (classes, height, width)"
                )
        elif outputs.dim() > -self.class_dim:
            outputs = outputs.movedim(self.class_dim, -1)
        else:
            raise CampaignError(
                f"an output of shape {tuple(outputs.shape[1:])} has no dimension"
                f" {self.class_dim}: give another class_dim"
            )
        if outputs.dim() < 2 or self.k >= outputs.shape[-1]:
            raise CampaignError(
                f"an output of shape {tuple(outputs.shape[1:])} has no more than {self.k} classes"
                " in its last dimension: give another metric, such as Tolerance()"
            )
        return outputs

    def _among(self, outputs: torch.Tensor, wanted: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Whether classes are among the largest, and how far they are from the border."""
        number = outputs.gather(-1, wanted[..., None])
        classes = torch.arange(outputs.shape[-1], device=outputs.device)
        first = (outputs == number) & (classes < wanted[..., None])
        rank = ((outputs > number) | first).sum(-1)
        others = outputs.double().scatter(-1, wanted[..., None], -torch.inf)
        border = others.topk(self.k, -1).values[..., -1]
        return rank < self.k, (number[..., 0].double() - border).abs().nan_to_num(0.0)


@dataclass(frozen=True)
class Top1(TopK):
    """Wrong if the predicted class has changed: the usual meaning of silent data corruption.

    Parameters
    ----------
    where_right, class_dim
        As for `TopK`.

    Notes
    -----
    ``score`` is 1 where the prediction is the label, 0 where not, NaN without labels.
    """

    k: int = 1

    def __init__(self, where_right: bool = False, class_dim: int | None = None) -> None:
        object.__setattr__(self, "k", 1)
        object.__setattr__(self, "where_right", where_right)
        object.__setattr__(self, "class_dim", class_dim)
        self.__post_init__()

    def __repr__(self) -> str:
        more = "" if self.class_dim is None else f", class_dim={self.class_dim}"
        return f"Top1(where_right={self.where_right}{more})"


class _OfAllTensors(Metric):
    """Compares all tensors of an output."""

    @staticmethod
    @abstractmethod
    def in_all(scores: torch.Tensor) -> torch.Tensor:
        """Give the score of an output from those of its tensors, shape (tensors, samples)."""

    def judge_all(
        self,
        golden: Sequence[torch.Tensor],
        faulty: Sequence[torch.Tensor],
        labels: torch.Tensor | None,
    ) -> Verdict:
        """Compare all tensors; see `Metric.judge_all`."""
        said = [self.judge(*pair, labels) for pair in zip(golden, faulty, strict=True)]
        changed, score = (
            torch.stack(x) for x in zip(*((y.changed, y.score) for y in said), strict=True)
        )
        return Verdict(changed.any(0), self.in_all(score), None)


@dataclass(frozen=True)
class Tolerance(_OfAllTensors):
    """Wrong if any number of any tensor is further off than ``atol + rtol * abs(golden)``.

    ``score`` is the largest absolute difference.

    Parameters
    ----------
    atol, rtol : float
        As for `torch.allclose`.
    """

    atol: float = 1e-8
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
                raise CampaignError(f"{name}={value!r} is no tolerance: give a number, 0 or more")

    def judge(
        self,
        golden: torch.Tensor,
        faulty: torch.Tensor,
        labels: torch.Tensor | None,  # noqa: ARG002 - other metrics use them
    ) -> Verdict:
        """Compare numbers; see `Metric.judge`."""
        right, found = rows_of(golden.double()), rows_of(faulty.double())
        # Infinities that are in both are no difference.
        off = torch.where(right == found, 0.0, (found - right).abs())
        off = torch.where(right.isnan() & found.isnan(), 0.0, off)
        wrong = ~(off <= self.atol + self.rtol * right.abs()) & (off != 0)
        return Verdict(wrong.any(1), off.amax(1), None)

    @staticmethod
    def in_all(scores: torch.Tensor) -> torch.Tensor:
        """Give the largest difference of all tensors."""
        return scores.amax(0)


@dataclass(frozen=True)
class Exact(_OfAllTensors):
    """Wrong if any number of any tensor differs; ``score`` is how many do."""

    def judge(
        self,
        golden: torch.Tensor,
        faulty: torch.Tensor,
        labels: torch.Tensor | None,  # noqa: ARG002 - other metrics use them
    ) -> Verdict:
        """Compare numbers; see `Metric.judge`."""
        differs = (golden != faulty) & ~(golden.isnan() & faulty.isnan())
        count = rows_of(differs).sum(1)
        return Verdict(count > 0, count.double(), None)

    @staticmethod
    def in_all(scores: torch.Tensor) -> torch.Tensor:
        """Give how many numbers differ in all tensors."""
        return scores.sum(0)


@dataclass(frozen=True)
class Function(Metric):
    """Wrong if a function of ``(golden, faulty, label)``, each of one sample, says so.

    Parameters
    ----------
    function : callable
        It is given the outputs of one sample without and with the fault, as tensors without a
        batch dimension (of an output of several tensors the first floating one), and the
        sample's label, a tensor, too, or None where there are no labels.  It returns whether
        the output is wrong, or a number: that is the ``score``, and the output is wrong where
        it is not 0. NaN is such a number.

    Raises
    ------
    CampaignError
        While faults are evaluated: the function fails also where no fault has changed the
        output, or returns neither a truth value nor a number.

    Examples
    --------
    >>> def moved(golden, faulty, label):
    ...     return bool(golden.argmax() != faulty.argmax())
    """

    function: Callable[[torch.Tensor, torch.Tensor, Any], Any]

    def judge(
        self, golden: torch.Tensor, faulty: torch.Tensor, labels: torch.Tensor | None
    ) -> Verdict:
        """Ask the function, sample by sample; see `Metric.judge`."""
        given = [None] * len(golden) if labels is None else labels
        try:
            said = [self.function(*row) for row in zip(golden, faulty, given, strict=True)]
        except _MISTAKES as error:
            if type(error) in _MISTAKES:
                self._check_without_fault(golden, given)
            raise
        try:
            return Verdict(
                torch.tensor([bool(x) for x in said], device="cpu"),
                torch.tensor([float(x) for x in said], dtype=torch.float64, device="cpu"),
            )
        except _MISTAKES as error:
            if type(error) not in _MISTAKES:
                raise
            wrong = next(x for x in said if not _is_number(x))
            raise CampaignError(
                f"the metric {self._name} returned {shown(wrong)}: {_of_function(golden, given)}"
            ) from error

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__name__", repr(self.function)))

    def _check_without_fault(self, golden: torch.Tensor, labels: Any) -> None:
        """Raise if it is not the fault that makes the function fail."""
        for right, label in zip(golden, labels, strict=True):
            try:
                self.function(right, right.clone(), label)
            except _MISTAKES as error:
                if type(error) not in _MISTAKES:
                    raise
                raise CampaignError(
                    f"the metric {self._name} fails even where nothing is wrong"
                    f" ({type(error).__name__}: {error}): {_of_function(golden, labels)}"
                ) from error


# How a function fails that takes what it is given for something else.  Of exactly these types:
# an accelerator's errors, which are RuntimeErrors, too, are not the function's.
_MISTAKES = (AttributeError, IndexError, RuntimeError, TypeError, ValueError, OverflowError)


def _of_function(golden: torch.Tensor, labels: Any) -> str:
    """Say what a function is given, and what it has to do."""
    return (
        "it is given (golden, faulty, label) of one sample without a batch dimension, of a model"
        " that gives several tensors the first of floating point, here"
        f" outputs of shape {tuple(golden.shape[1:])} and as label {shown(labels[0])}; let it"
        " return True or False, or a number that is 0 where nothing is wrong"
    )


def shown(thing: Any) -> str:
    """Say in a few words what something is."""
    if isinstance(thing, torch.Tensor):
        return f"a tensor of shape {tuple(thing.shape)} and type {_type_of(thing)}"
    return "None" if thing is None else f"{type(thing).__name__} {thing!r:.60}"


def _type_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_number(thing: Any) -> bool:
    try:
        bool(thing), float(thing)
    except _MISTAKES:
        return False
    return True


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Give each row flat, also where it is a single number."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]


def main_output(leaves: Sequence[torch.Tensor]) -> int:
    """Give the place of the first floating tensor, or else of the first one."""
    return next((i for i, x in enumerate(leaves) if x.is_floating_point()), 0)


def _as_classes(labels: torch.Tensor, wanted: torch.Tensor, classes: int) -> torch.Tensor:
    """Give labels the shape of the classes that they are compared with."""
    if labels.is_floating_point() or labels.is_complex() or labels.numel() != wanted.numel():
        raise CampaignError(
            f"labels of shape {tuple(labels.shape[1:])} and type {_type_of(labels)} name no"
            " class of a sample: give whole numbers, one for each class that the model tells, or"
            " another metric"
        )
    if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
        raise CampaignError(
            f"labels go from {labels.min()} to {labels.max()}, and the model has {classes}"
            f" classes: give labels from 0 to {classes - 1}"
        )
    return labels.long().reshape(wanted.shape)


def as_metric(metric: Metric | Callable[..., Any]) -> Metric:
    """Make a metric of a function, as `Function` tells; give a metric back as it is."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        try:
            made: Metric = metric()
        except TypeError as error:
            raise CampaignError(
                f"the metric {metric.__name__} can't be made ({error}): pass an object of it"
            ) from error
        return made
    if callable(metric):
        return Function(metric)
    raise CampaignError(
        f"{metric!r} is no metric: give Top1(), TopK(5), Tolerance(), Exact() or a function of"
        " (golden, faulty, label)"
    )
