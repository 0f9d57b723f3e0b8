"""What all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytest_randomly
from hypothesis import settings

# Tests that import onnxruntime before qtool: it must not look for a network either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Two pytest workers on two cores: torch, when it is imported, must not start threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The qonnx package registers a seeder that prints into the output of every test.
pytest_randomly.entrypoint_reseeds = []

# The same examples at every run: what lands must not depend on luck. `make slow` draws new ones,
# and more of them.
settings.register_profile("qtool", max_examples=30, deadline=None, database=None, derandomize=True)
settings.register_profile("explore", max_examples=60, deadline=None, database=None)
settings.load_profile(os.environ.get("QTOOL_HYPOTHESIS", "qtool"))

DIGITS = Path(__file__).parents[1] / "recipes" / "digits"


_STATES: dict[str, dict] = {}  # per test module: the state of its RNG after import


@pytest.fixture(autouse=True)
def _same_draws(request: pytest.FixtureRequest) -> None:
    """Reset the module's RNG, so that a test draws the same numbers in every order of the tests."""
    rng = getattr(request.module, "RNG", None)
    if isinstance(rng, np.random.Generator):
        state = _STATES.setdefault(request.module.__name__, rng.bit_generator.state)
        rng.bit_generator.state = state


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder recipes/digits, its images written."""
    subprocess.run([sys.executable, DIGITS / "prepare.py"], check=True, capture_output=True)
    return DIGITS
