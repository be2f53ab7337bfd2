"""The presets for pods compile ahead of time, in full, and take the memory that is planned.

On 256 simulated devices always; and by the compiler for TPUs, splash attention included, where
`pip install libtpu` has been run: no TPU is needed.
"""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lmnoise.assemble import dry_run
from lmnoise.training.hardware import named_chip

ROOT = Path(__file__).parent.parent

# Arguments: config file, preset, chip, and a topology or a number of devices.
PROGRAM = """
import json, runpy, sys
import jax
from jax.experimental import topologies
from lmnoise import assemble
from lmnoise.training import mesh
from lmnoise.training.hardware import named_chip

path, preset, chip, place = sys.argv[1:]
config = runpy.run_path(path)["get_config"](preset)
if place.isdecimal():
    devices = jax.devices()[: int(place)]
else:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=place).devices
    jax.default_backend = lambda: "tpu"
plan = assemble.dry_run(config, devices=len(devices), chip=named_chip(chip), mfu=0.4)
config.mesh.update(plan.sizes)
if place.isdecimal():
    config.model.update(dict(layers_as="scan", attention="plain"))
members = assemble.members_of(config)
make_mesh = lambda needs: mesh.make_mesh(**config.mesh, devices=devices)
population = assemble.without_data(config, members, 50257, make_mesh, abstract=True)[2]
compiled = population.lower(assemble.batch_shapes(config, members)).compile()
memory, text = compiled.memory_analysis(), compiled.as_text()
found = dict(
    sizes=plan.sizes,
    warnings=plan.warnings(),
    planned=[plan.argument_bytes, plan.total_bytes],
    arguments=memory.argument_size_in_bytes,
    total=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    kind=4 * len(members) // plan.sizes["member"],
    kernels=text.count("tpu_custom_call"),
)
print(json.dumps(found))
"""


def compiled(path, preset, chip, place):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=256",
        "TPU_SKIP_MDS_QUERY": "1",  # this machine is no TPU, and need not be asked
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside another process that compiles
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    command = [sys.executable, "-c", PROGRAM, path, preset, chip, place]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr
    return json.loads(done.stdout)


def test_on_simulated_devices():
    found = compiled("configs/noise.py", "pod", "tpu v5e", "256")
    assert found["warnings"] == []
    # A member's `kind` is no argument where all are of one kind.
    assert found["arguments"] == found["planned"][0] - found["kind"]


@pytest.mark.parametrize(
    ("preset", "chip", "devices"),
    [("pod", "tpu v5p", 64), ("pod", "h100", 64), ("gpu", "h100", 1), ("gpu", "a100", 1)],
)
def test_presets_fit_where_they_say_they_do(preset, chip, devices):
    config = runpy.run_path(str(ROOT / "configs" / "noise.py"))["get_config"](preset)
    plan = dry_run(config, devices=devices, chip=named_chip(chip), mfu=0.4)
    assert plan.warnings() == [], plan.text()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is missing"
)
@pytest.mark.parametrize(("chip", "topology"), [("tpu v5e", "v5e:16x16"), ("tpu v5p", "v5p:4x4x8")])
def test_by_the_compiler_for_tpus(chip, topology):
    found = compiled("configs/noise.py", "pod", chip, topology)
    assert found["kernels"] > 0  # splash attention
    assert found["arguments"] == pytest.approx(found["planned"][0], rel=0.01)  # laid out in tiles
    assert found["total"] == pytest.approx(found["planned"][1], rel=0.15)


def test_a_dry_run_from_the_command_line():
    flags = ["--config=configs/noise.py:pod", "--dry_run", "--dry_run_devices=256"]
    command = [sys.executable, "-m", "lmnoise.train", *flags, "--dry_run_chip=tpu v5e", "--mfu=0.5"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "256 (tpu v5e): member 16 x data 16 x fsdp 1 x model 1" in done.stdout
    assert "124,475,904 x 16 members" in done.stdout
    assert "at MFU 50%" in done.stdout
