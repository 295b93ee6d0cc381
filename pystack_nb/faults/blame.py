"""Which exceptions are what a fault did, and which are the machine's own trouble."""

from __future__ import annotations

import os
import re

import torch

from pystack_nb.errors import CampaignError


# Errors that stay with a device until its process ends; torch 2.8 is the first to tell them.
_LOST: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
# What libraries on a GPU say when they can't allocate.
_STATUS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
# As in "you tried to allocate 64 bytes", "Tried to allocate 3.64 TiB", "Unable to allocate 8 PiB".
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = {x: 1024**n for n, x in enumerate(["bytes", *(f"{c}iB" for c in "KMGTPE")])}


class MemoryShortageError(CampaignError):
    """Memory ran out while a fault was evaluated."""


def check_blame(error: Exception, device: torch.device) -> None:
    """Raise if an exception in a forward under a fault may not be the fault's outcome.

    A wish for more memory than the machine has, as of a tensor whose size a fault changed, is
    its outcome: no other run would end otherwise.

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
        if _is_absurd(error, device):
            return
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
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    if isinstance(error, _LOST):
        return "out of memory" in text
    # On a processor torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(
        x in text for x in ("DefaultCPUAllocator", *_STATUS)
    )


def _is_absurd(error: Exception, device: torch.device) -> bool:
    """Whether an allocation failed that is larger than all memory, however much is free."""
    if (found := _ASKED.search(str(error))) is None:
        return False
    asked: float = float(found[1]) * _UNITS[found[2]]
    if isinstance(error, torch.cuda.OutOfMemoryError) and device.type == "cuda":
        there: int = torch.cuda.mem_get_info(device)[1]
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return asked > there
