"""What counts as a wrong output: metrics that compare faulty outputs with golden ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Callable


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
        change them; None if every last bit matters.
    """

    changed: torch.Tensor
    score: torch.Tensor
    lead: torch.Tensor | None


class Metric(ABC):
    """Says of each row of a batch of outputs whether a fault has made it wrong."""

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
        """


@dataclass(frozen=True)
class TopK(Metric):
    """Wrong if the golden output's class is no longer among the ``k`` largest.

    The classes are the last dimension; where an output has more of them (a class for each
    token), one wrong class makes it wrong.  Of equal numbers the first is the larger.

    Parameters
    ----------
    k : int
        1 is the predicted class itself.
    where_right : bool
        Count a change only where the golden class is the label; needs labels.

    Notes
    -----
    ``score`` is the share of labels that are among the ``k`` largest, NaN without labels.
    """

    k: int = 5
    where_right: bool = False
    decides_by_rank = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise CampaignError(f"there are no {self.k} largest classes: give k=1 or more")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether labels have to be there."""
        return self.where_right

    def judge(
        self, golden: torch.Tensor, faulty: torch.Tensor, labels: torch.Tensor | None
    ) -> Verdict:
        """Compare the places of classes; see `Metric.judge`."""
        if golden.dim() < 2 or self.k >= golden.shape[-1]:
            raise CampaignError(
                f"an output of shape {tuple(golden.shape[1:])} has no more than {self.k} classes"
                " in its last dimension: give another metric, such as Tolerance()"
            )
        wanted = golden.argmax(-1)
        inside, lead = self._among(faulty, wanted)
        score = torch.full(inside.shape, torch.nan, dtype=torch.float64, device=inside.device)
        changed = ~inside
        if labels is not None:
            right, other = self._among(faulty, labels.to(wanted.device).reshape(wanted.shape))
            score, lead = right.double(), torch.minimum(lead, other)
            if self.where_right:
                changed &= wanted == labels.to(wanted.device).reshape(wanted.shape)
        rows = len(golden)
        return Verdict(
            changed.reshape(rows, -1).any(1),
            score.reshape(rows, -1).mean(1),
            lead.reshape(rows, -1).amin(1),
        )

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
    where_right : bool
        Count a change only where the golden class is the label; needs labels.

    Notes
    -----
    ``score`` is 1 where the prediction is the label, 0 where not, NaN without labels.
    """

    k: int = 1

    def __init__(self, where_right: bool = False) -> None:
        object.__setattr__(self, "k", 1)
        object.__setattr__(self, "where_right", where_right)

    def __repr__(self) -> str:
        return f"Top1(where_right={self.where_right})"


@dataclass(frozen=True)
class Tolerance(Metric):
    """Wrong if any number is further off than ``atol + rtol * abs(golden)``.

    ``score`` is the largest absolute difference.

    Parameters
    ----------
    atol, rtol : float
        As for `torch.allclose`.
    """

    atol: float = 1e-8
    rtol: float = 1e-5

    def judge(
        self,
        golden: torch.Tensor,
        faulty: torch.Tensor,
        labels: torch.Tensor | None,  # noqa: ARG002 - other metrics use them
    ) -> Verdict:
        """Compare numbers; see `Metric.judge`."""
        right = golden.double().flatten(1)
        # Infinities that are in both are no difference.
        off = torch.where(
            right == faulty.flatten(1), 0.0, (faulty.double().flatten(1) - right).abs()
        )
        off = torch.where(right.isnan() & faulty.flatten(1).isnan(), 0.0, off)
        wrong = ~(off <= self.atol + self.rtol * right.abs()) & (off != 0)
        return Verdict(wrong.any(1), off.amax(1), None)


@dataclass(frozen=True)
class Exact(Metric):
    """Wrong if any number differs; ``score`` is how many do."""

    def judge(
        self,
        golden: torch.Tensor,
        faulty: torch.Tensor,
        labels: torch.Tensor | None,  # noqa: ARG002 - other metrics use them
    ) -> Verdict:
        """Compare numbers; see `Metric.judge`."""
        differs = (golden != faulty) & ~(golden.isnan() & faulty.isnan())
        count = differs.flatten(1).sum(1)
        return Verdict(count > 0, count.double(), None)


@dataclass(frozen=True)
class Function(Metric):
    """Wrong if a function of ``(golden, faulty, label)``, each of one sample, says so.

    Its number, or 0 and 1, is the ``score``.
    """

    function: Callable[[torch.Tensor, torch.Tensor, Any], Any]

    def judge(
        self, golden: torch.Tensor, faulty: torch.Tensor, labels: torch.Tensor | None
    ) -> Verdict:
        """Ask the function, sample by sample; see `Metric.judge`."""
        given = [None] * len(golden) if labels is None else labels
        said = [self.function(*row) for row in zip(golden, faulty, given, strict=True)]
        return Verdict(
            torch.tensor([bool(x) for x in said]),
            torch.tensor([float(x) for x in said], dtype=torch.float64),
            None,
        )


def as_metric(metric: Metric | Callable[..., Any]) -> Metric:
    """Make a metric of a function; give a metric back as it is."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        made: Metric = metric()
        return made
    if callable(metric):
        return Function(metric)
    raise CampaignError(
        f"{metric!r} is no metric: give Top1(), TopK(5), Tolerance(), Exact() or a function of"
        " (golden, faulty, label)"
    )
