"""Checkpoints that are whole, damaged, of another shape, or of another config."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.errors import UserError
from lmnoise.training.checkpoint import Checkpoints, claim

SHAPES = {"w": (3, 40), "deep": {"bias": (3,)}}


def states(seed, shapes=SHAPES):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def abstract(shapes=SHAPES):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), states(0, shapes)
    )


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with the checkpoints 10, 20 and 30, whose states are `states(step)`."""
    folder = tmp_path_factory.mktemp("intact") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, states(step), {"history": [[float(step), float("nan")]]})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "checkpoints")


def restore(folder, shapes=SHAPES, at_most=None):
    checkpoints = Checkpoints(folder, keep=3)
    try:
        return checkpoints.restore(abstract(shapes), at_most)
    finally:
        checkpoints.close()


def test_the_latest_comes_back_bit_for_bit(folder, same, capfd):
    step, restored, meta = restore(folder)
    assert step == 30
    same(restored, states(30))
    assert meta["history"][0][0] == 30
    assert np.isnan(meta["history"][0][1])
    assert capfd.readouterr().err == ""


def test_saved_states_may_be_donated_at_once(tmp_path, same):
    """What is stored is what was passed, even if the buffers are overwritten meanwhile."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0 - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    large = {"w": (512, 512), "deep": {"bias": (100_000,)}}
    for step in range(1, 6):
        checkpoints.save(step, live := states(step, large), {})
        for _ in range(3):
            live = overwrite(live)
    for step in range(5, 0, -1):
        same(checkpoints.restore(abstract(large), step).states, states(step, large))
    checkpoints.close()


def test_saving_a_step_twice_is_saving_it_once(tmp_path, same):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, states(1), {})
    checkpoints.save(1, states(2), {})
    same(checkpoints.restore(abstract()).states, states(1))
    checkpoints.close()


def test_the_keep_policy(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_every=20)
    for step in range(10, 71, 10):
        checkpoints.save(step, states(step), {})
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [20, 40, 60, 70]


def test_restoring_up_to_a_step(folder):
    assert restore(folder, at_most=29).step == 20
    assert restore(folder, at_most=20).step == 20
    assert restore(folder, at_most=5).step == 10  # nothing as early: the earliest there is


def test_discarding_later_checkpoints(folder):
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.discard_after(10)
    assert [p.name for p in folder.iterdir()] == ["10"]
    checkpoints.save(20, states(21), {})
    checkpoints.close()
    assert restore(folder).step == 20


def data_files(checkpoint):
    return sorted((checkpoint / "states").rglob("d/*"), key=lambda p: p.stat().st_size)


def truncate_data(checkpoint):
    for file in data_files(checkpoint):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_data(checkpoint):
    for file in data_files(checkpoint):
        file.write_bytes(b"")


def delete_data(checkpoint):
    for file in data_files(checkpoint):
        file.unlink()


def flip_data(checkpoint):
    for file in data_files(checkpoint):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def garble_tree(checkpoint):
    (checkpoint / "states" / "_METADATA").write_bytes(b"\x00garbage")


def garble_meta(checkpoint):
    (checkpoint / "meta" / "metadata").write_bytes(b"{garbage")


def delete_meta(checkpoint):
    shutil.rmtree(checkpoint / "meta")


def delete_states(checkpoint):
    shutil.rmtree(checkpoint / "states")


def garble_all(checkpoint):
    for file in [p for p in checkpoint.rglob("*") if p.is_file()]:
        file.write_bytes(b"garbage")


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = [
    truncate_data,
    empty_data,
    delete_data,
    flip_data,
    garble_tree,
    garble_meta,
    delete_meta,
    delete_states,
    garble_all,
    empty,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(folder, same, capfd, damage):
    damage(folder / "30")
    step, restored, _ = restore(folder)
    assert step == 20
    same(restored, states(20))
    assert (folder.parent / "unreadable-30").is_dir()
    assert not (folder / "30").exists()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "unreadable-30" in said[0]
    assert "the one of step 20 is used" in said[0]


def test_two_damaged_checkpoints_and_the_same_step_damaged_again(folder, same):
    truncate_data(folder / "30")
    empty(folder / "20")
    checkpoints = Checkpoints(folder, keep=3)
    assert checkpoints.restore(abstract()).step == 10
    checkpoints.save(30, states(31), {})
    checkpoints.wait()
    empty(folder / "30")
    assert checkpoints.restore(abstract()).step == 10
    checkpoints.close()
    names = sorted(p.name for p in folder.parent.glob("unreadable-*"))
    assert names == ["unreadable-20", "unreadable-30", "unreadable-30-1"]


def test_if_none_can_be_read_nothing_moves(folder):
    for step in (10, 20, 30):
        truncate_data(folder / str(step))
    for _ in range(2):  # the second run must not start from scratch
        with pytest.raises(UserError, match="none of the 3 checkpoints"):
            restore(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["10", "20", "30"]
    assert not list(folder.parent.glob("unreadable-*"))


def test_no_memory_is_no_damage(folder, monkeypatch):
    checkpoints = Checkpoints(folder, keep=3)

    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(checkpoints._reader, "restore", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        checkpoints.restore(abstract())
    checkpoints.close()
    assert not list(folder.parent.glob("unreadable-*"))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"w": (3, 41), "deep": {"bias": (3,)}}, r"w is \(3, 40\) there and \(3, 41\) here"),
        ({"w": (3, 40)}, r"deep/bias is \(3,\) there and missing here"),
        ({**SHAPES, "new": (2,)}, r"new is missing there and \(2,\) here"),
    ],
)
def test_another_shape_is_a_user_error(folder, shapes, words):
    with pytest.raises(UserError, match=words):
        restore(folder, shapes)
    assert sorted(p.name for p in folder.iterdir()) == ["10", "20", "30"]


def test_leftovers_of_a_killed_save_are_no_checkpoint(folder):
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(folder, keep=3)
    assert checkpoints.restore(abstract()).step == 30
    checkpoints.save(50, states(50), {})
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["20", "30", "50"]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


# ---- claim --------------------------------------------------------------------------------------

CONFIG = {"train": {"steps": 10, "rates": (0.1, 0.2)}, "name": "a"}


def test_a_work_directory_belongs_to_its_config(tmp_path):
    workdir = tmp_path / "new" / "run"
    claim(workdir, CONFIG)
    claim(workdir, CONFIG)
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 10
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"train": {"steps": 11, "rates": (0.1, 0.2)}}, r"config.train.steps = 10 .* has 11"),
        ({"train": {"steps": 10, "rates": (0.1, 0.3)}}, r"config.train.rates = \[0.1, 0.2\]"),
        ({"more": 1}, r"config.more = None"),
    ],
)
def test_another_config_is_refused_by_the_key(tmp_path, other, words):
    claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=words):
        claim(tmp_path, CONFIG | other)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_work_directory_without_progress_goes_to_the_next_config(tmp_path):
    claim(tmp_path, CONFIG)
    claim(tmp_path, CONFIG | {"more": 1})
    assert json.loads((tmp_path / "config.json").read_text())["more"] == 1


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        claim(tmp_path, CONFIG)
