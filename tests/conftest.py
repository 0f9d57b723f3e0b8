"""What all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_randomly
from hypothesis import settings

# Two pytest workers on two cores: torch, when it is imported, must not start threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The qonnx package registers a seeder that prints into the output of every test.
pytest_randomly.entrypoint_reseeds = []

settings.register_profile("qtool", max_examples=60, deadline=None, database=None)
settings.load_profile("qtool")

DIGITS = Path(__file__).parents[1] / "recipes" / "digits"


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder recipes/digits, its images written."""
    subprocess.run([sys.executable, DIGITS / "prepare.py"], check=True, capture_output=True)
    return DIGITS
