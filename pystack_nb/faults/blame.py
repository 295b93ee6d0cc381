"""Which exceptions are what a fault did, and which are the machine's own trouble."""

from __future__ import annotations

import torch

from pystack_nb.errors import CampaignError


# Errors that stay with a device until its process ends; torch 2.8 is the first to tell them.
_LOST: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)


class MemoryShortageError(CampaignError):
    """Memory ran out while a fault was evaluated."""


def check_blame(error: Exception, device: torch.device) -> None:
    """Raise if an exception in a forward under a fault may not be the fault's outcome.

    Parameters
    ----------
    error : Exception
        What the forward raised.
    device : torch.device
        Where it ran.

    Raises
    ------
    MemoryShortageError
        If memory ran out.
    CampaignError
        If the device can't be used any more: whatever runs on it fails from now on.
    """
    if is_memory_shortage(error):
        raise MemoryShortageError(
            f"memory ran out on {device} while a fault was evaluated, which is no outcome of the"
            " fault: free some or pass a smaller batch_size, and run again; finished batches of"
            " a campaign with a path are kept"
        ) from error
    lost: Exception | None = error if isinstance(error, _LOST) else None
    if lost is None and device.type != "cpu":
        # What runs there is behind: its errors are told by a later call.
        try:
            torch.accelerator.synchronize(device)
        except Exception as late:  # noqa: BLE001 - whatever it is, the device has failed
            lost = late
    if lost is not None:
        raise CampaignError(
            f"the device {device} is lost ({type(lost).__name__}: {lost}), so that no further"
            " outcome could be trusted: restart the kernel and run the campaign again with the"
            " same path; finished batches are kept"
        ) from lost


def is_memory_shortage(error: Exception) -> bool:
    """Whether memory ran out."""
    # On a processor torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
