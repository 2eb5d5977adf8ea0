"""Runs kernels in Triton's interpreter: scripts of their own, as it has to be chosen before Triton is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest) -> Any:
    """What the script that a test module names as `INTERPRETED` prints."""
    script = Path(__file__).parent / request.module.INTERPRETED
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
