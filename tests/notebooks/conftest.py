from __future__ import annotations

import kernels
import pytest


@pytest.fixture(scope="module")
def kernel():
    """One kernel for a whole module, with the extension loaded."""
    with kernels.kernel() as running:
        assert running.run("%load_ext pystack_nb\nimport pystack_nb").status == "ok"
        yield running
