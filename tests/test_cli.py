"""Compiled programs are kept where the user's cache is, or where JAX is told to keep them."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, time
from lmnoise import cli

def main():
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Entries are read and written without a word.
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()

cli.run(main)
"""


def start(**env):
    taken = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    env = {k: v for k, v in os.environ.items() if k not in taken} | env
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("where", ["user", "named"])
def test_a_second_start_finds_what_the_first_compiled(tmp_path, where):
    named = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "named")} if where == "named" else {}
    env = {"XDG_CACHE_HOME": str(tmp_path / "user")} | named
    start(**env)
    kept = sorted(path.name for path in tmp_path.rglob("*-cache"))
    assert kept
    folder = tmp_path / "named" if where == "named" else tmp_path / "user/lmnoise/compiled"
    assert all(path.parent == folder for path in tmp_path.rglob("*-cache"))
    start(**env)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == kept


def test_nothing_is_kept_on_request(tmp_path):
    start(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")
    assert list(tmp_path.rglob("*-cache")) == []
