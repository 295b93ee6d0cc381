"""Protections of a model against faults: what they find, what they leave, what they cost.

::

    ranger = faults.Ranger.profile(model, images)
    with faults.protect(model, ranger, faults.NanDetector()) as protection:
        model(images)
    protection.report()

They look after injected faults have struck, whichever context was entered first.  Percentages
alone mislead when a protection takes time, in which more faults can strike: `compare` says both.
"""

from __future__ import annotations

from pystack_nb.faults.protection_compare import compare
from pystack_nb.faults.protection_guards import Defence
from pystack_nb.faults.protection_ranges import NanDetector, Ranger
from pystack_nb.faults.protection_redundancy import Checksum, Duplicate
from pystack_nb.faults.protection_scope import Protection, protect


__all__ = [
    "Checksum",
    "Defence",
    "Duplicate",
    "NanDetector",
    "Protection",
    "Ranger",
    "compare",
    "protect",
]
