from __future__ import annotations

import pytest

from probed_programs import Probed
from probing import MINORS


@pytest.fixture(params=MINORS, ids=lambda minor: f"3.{minor}")
def probed(request, tmp_path):
    """Run programs that record themselves with the probe, and give what they kept."""
    return Probed(request.param, tmp_path)
