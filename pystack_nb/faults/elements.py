"""Elements that a fault strikes, read and written on their own device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pystack_nb.faults import bits


if TYPE_CHECKING:
    import numpy as np
    import torch

    from numpy.typing import NDArray


class Elements:
    """Elements of a tensor, found once and then read and written where they are.

    Parameters
    ----------
    tensor : torch.Tensor
        As for `bits.flip_bit`.
    positions : numpy.ndarray of int64, shape (n,)
        Flat indices in C order, distinct.
    kept : dict, optional
        Where indices are kept on their device, for the next tensor of the same shape.

    Attributes
    ----------
    tensor, positions
        As given.
    kept : dict
        What else may be kept with these positions.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        positions: NDArray[np.int64],
        kept: dict[Any, Any] | None = None,
    ) -> None:
        self.tensor, self.positions = tensor, positions
        self.kept = {} if kept is None else kept
        view, flat = bits.own(tensor), tensor.is_contiguous()
        key = (tensor.device, tuple(tensor.shape), flat)
        if key not in self.kept:
            self.kept[key] = bits.place(view, positions)[1]
        self._view, self._where = view.view(-1) if flat else view, self.kept[key]

    def read(self) -> torch.Tensor:
        """Copy the stored bits, on the tensor's device, as `bits.stored` shows them: shape (n,)."""
        return self._view[self._where]

    def write(self, stored: torch.Tensor) -> None:
        """Put bits, as `read` gives them."""
        self._view[self._where] = stored
