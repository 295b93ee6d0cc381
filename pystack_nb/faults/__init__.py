"""What a hardware fault would do to a PyTorch model.

Name the places that a fault can strike, and let one strike::

    from pystack_nb import faults

    faults.sites(model, images)
    with faults.inject(model, faults.Fault("conv1", error=faults.BitFlip(bit=30)), seed=0) as log:
        model(images)
    log.to_frame()

or find out how often it matters::

    campaign = faults.Campaign(model, (images, labels), faults.BitFlip(), seed=0)
    campaign.run()
    campaign.summary()

PyTorch comes with ``pip install pystack-nb[torch]``.
"""

from __future__ import annotations

import sys

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pystack_nb.errors import TorchMissingError


if TYPE_CHECKING:
    from pystack_nb.faults.annotate import annotate
    from pystack_nb.faults.bits import flip_bit
    from pystack_nb.faults.campaign import Campaign
    from pystack_nb.faults.exposure import exposure
    from pystack_nb.faults.injection import Fault, inject
    from pystack_nb.faults.log import InjectionLog
    from pystack_nb.faults.metrics import Exact, Metric, Tolerance, Top1, TopK, Verdict
    from pystack_nb.faults.models import (
        BitFlip,
        Custom,
        ErrorModel,
        Noise,
        RandomValue,
        Replace,
        Sequence,
        StuckAt,
        Zero,
    )
    from pystack_nb.faults.patterns import (
        BitErrorRate,
        Channel,
        Element,
        ElementErrorRate,
        Everywhere,
        Pattern,
        Row,
        Several,
    )
    from pystack_nb.faults.plan import Plan
    from pystack_nb.faults.protection import (
        Checksum,
        Defence,
        Duplicate,
        NanDetector,
        Protection,
        Ranger,
        compare,
        protect,
    )
    from pystack_nb.faults.pytorchfi import FaultInjection
    from pystack_nb.faults.reweighting import Reweighted
    from pystack_nb.faults.sites import sites
    from pystack_nb.faults.statistics import Estimate, sample_size, upper_bound, wilson

__all__ = [
    "BitErrorRate",
    "BitFlip",
    "Campaign",
    "Channel",
    "Checksum",
    "Custom",
    "Defence",
    "Duplicate",
    "Element",
    "ElementErrorRate",
    "ErrorModel",
    "Estimate",
    "Everywhere",
    "Exact",
    "Fault",
    "FaultInjection",
    "InjectionLog",
    "Metric",
    "NanDetector",
    "Noise",
    "Pattern",
    "Plan",
    "Protection",
    "RandomValue",
    "Ranger",
    "Replace",
    "Reweighted",
    "Row",
    "Sequence",
    "Several",
    "StuckAt",
    "Tolerance",
    "Top1",
    "TopK",
    "Verdict",
    "Zero",
    "annotate",
    "compare",
    "exposure",
    "flip_bit",
    "inject",
    "protect",
    "sample_size",
    "sites",
    "upper_bound",
    "wilson",
]

_NAMES_OF = {
    "annotate": ["annotate"],
    "bits": ["flip_bit"],
    "campaign": ["Campaign"],
    "exposure": ["exposure"],
    "injection": ["Fault", "inject"],
    "log": ["InjectionLog"],
    "metrics": ["Exact", "Metric", "Tolerance", "Top1", "TopK", "Verdict"],
    "models": [
        *["BitFlip", "Custom", "ErrorModel", "Noise", "RandomValue"],
        *["Replace", "Sequence", "StuckAt", "Zero"],
    ],
    "patterns": [
        *["BitErrorRate", "Channel", "Element", "ElementErrorRate"],
        *["Everywhere", "Pattern", "Row", "Several"],
    ],
    "plan": ["Plan"],
    "protection": [
        *["Checksum", "Defence", "Duplicate", "NanDetector", "Protection", "Ranger"],
        *["compare", "protect"],
    ],
    "pytorchfi": ["FaultInjection"],
    "reweighting": ["Reweighted"],
    "sites": ["sites"],
    "statistics": ["Estimate", "sample_size", "upper_bound", "wilson"],
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


class _Package(ModuleType):
    """Keeps a function's name when the module of that name is imported.

    The import system sets a submodule as an attribute of its package; for `sites`,
    `annotate` and `exposure` that would hide the function that this package promises.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        module = import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TorchMissingError(
            f"pystack_nb.faults.{name} is for PyTorch models, and PyTorch is not installed: pip"
            " install pystack-nb[torch], or torch alone"
        ) from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # What stands above is nothing of this package.
    return sorted({*__all__, *(x for x in globals() if x.startswith("__"))})
