"""Masks on disk: round trips, damage, other models; and from a file to frozen entries."""

import json
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.evaluation import masks, regions
from lmnoise.models.transformer import LanguageModel, llama
from lmnoise.training.mesh import make_mesh
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays

SHAPES = {"tokens": (5, 3), "blocks": {0: {"scale": (3,)}, 1: {"scale": (3,), "bias": ()}}}


def leaves_of(function):
    return jax.tree.map(function, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


LIKE = leaves_of(np.zeros)


def some_mask(seed, like=LIKE, share=0.3):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(random.random(leaf.shape) < share), like)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert jax.tree.structure(left[name]) == jax.tree.structure(right[name])
        leaves = map(jax.tree.leaves, (left[name], right[name]))
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


one_mask = st.builds(
    lambda *leaves: jax.tree.unflatten(jax.tree.structure(LIKE), leaves),
    *(arrays.arrays(bool, leaf.shape) for leaf in jax.tree.leaves(LIKE)),
)
json_values = st.dictionaries(
    st.text(), st.text() | st.integers() | st.lists(st.floats(0, 1)), max_size=3
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(named=st.dictionaries(st.text(), one_mask, min_size=1, max_size=4), about=json_values)
def test_round_trip(tmp_path, named, about):
    path = tmp_path / "masks.npz"
    masks.save(path, named, about)
    loaded, told = masks.load(path, LIKE)
    assert_same(loaded, named)
    assert told == about
    assert list(loaded) == list(named)


def test_a_file_takes_an_eighth_of_a_byte_an_entry_and_mask(tmp_path):
    like = {"blocks": {n: np.zeros((100, 81)) for n in range(20)}}
    masks.save(tmp_path / "m.npz", {str(k): some_mask(k, like) for k in range(3)}, {})
    ideal = 3 * 20 * 8100 / 8
    assert ideal <= (tmp_path / "m.npz").stat().st_size < 1.05 * ideal


def test_saving_replaces_and_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "new" / "m.npz"
    for seed in range(2):
        masks.save(path, {"core": some_mask(seed)}, {"seed": seed})
    with pytest.raises(TypeError):
        masks.save(path, {"core": some_mask(2)}, {"seed": object()})
    loaded, about = masks.load(path, LIKE)
    assert_same(loaded, {"core": some_mask(1)})
    assert about == {"seed": 1}
    assert [p.name for p in path.parent.iterdir()] == ["m.npz"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    masks.save(path, {"core": some_mask(0)}, {})

    def half(file, **arrays):
        file.write(b"PK\x03\x04")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        masks.save(path, {"core": some_mask(1)}, {})
    assert_same(masks.load(path, LIKE)[0], {"core": some_mask(0)})
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_masks_that_are_none_or_differ_are_refused(tmp_path):
    path, mask = tmp_path / "m.npz", some_mask(0)
    for named in (
        {},
        {"a": mask, "b": mask | {"tokens": np.zeros((5, 4), bool)}},
        {"a": mask, "b": mask["blocks"]},
        {"a": jax.tree.map(np.float32, mask)},
    ):
        with pytest.raises(ValueError, match="masks"):
            masks.save(path, named, {})
    assert not path.exists()


# ---- files that do not fit ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "core.npz"
    masks.save(path, {"core": some_mask(0), "bottom": some_mask(1)}, {"share": 0.01})
    return path


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), cut=st.booleans())
def test_damage_is_seen_or_does_no_harm(saved, place, bits, cut):
    whole = saved.read_bytes()
    index = int(place * len(whole))
    broken = bytearray(whole)
    broken[index] ^= bits
    path = saved.with_name("broken.npz")
    path.write_bytes(whole[:index] if cut else bytes(broken))
    message = None
    try:
        loaded, about = masks.load(path, LIKE)
    except UserError as error:
        message = str(error)
    if message is None:
        assert not cut
        assert_same(loaded, masks.load(saved, LIKE)[0])
        assert about == {"share": 0.01}
    else:
        assert "broken.npz is damaged or no file of masks" in message
        assert "lmnoise.analyze regions" in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", ["text", "empty", "npy", "pickle", "npz", "zip", "version"])
def test_a_file_of_something_else_is_named(tmp_path, kind):
    path = tmp_path / "core.npz"
    header = {"format": "lmnoise masks 0", "masks": [], "leaves": []}
    with open(path, "wb") as file:
        match kind:
            case "text":
                file.write(b"core = top 1 %")
            case "npy":
                np.save(file, np.zeros(3))
            case "pickle":
                np.save(file, np.array([{}]), allow_pickle=True)
            case "npz":
                np.savez(file, weights=np.zeros(3))
            case "zip":
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr("header.npy", b"{}")
            case "version":
                np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    with pytest.raises(UserError, match=r"core\.npz is damaged or no file of masks \(.+\): make"):
        masks.load(path, LIKE)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.npz cannot be read \(No such file.*check the path"):
        masks.load(tmp_path / "no.npz", LIKE)
    with pytest.raises(UserError, match="cannot be read"):
        masks.load(tmp_path, LIKE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"tokens": np.zeros((9, 3))}, r"tokens is \(5, 3\) there and \(9, 3\) in"),
        (lambda t: t | {"head": np.zeros(2)}, r"head is missing there and \(2,\) in"),
        (lambda t: {"blocks": t["blocks"]}, r"tokens is \(5, 3\) there and missing in"),
        (
            lambda t: t | {"blocks": {0: {"scale": np.zeros((3, 1))}, 1: t["blocks"][1]}},
            r"blocks/0/scale is \(3,\) there and \(3, 1\) in",
        ),
    ],
    ids=["shape", "surplus", "missing", "rank"],
)
def test_masks_of_another_model_are_named_with_both_shapes(saved, change, words):
    with pytest.raises(UserError, match=rf"core\.npz holds masks of another model: {words}"):
        masks.load(saved, change(LIKE))
    with pytest.raises(UserError, match="open the checkpoint that they were made for, or make"):
        masks.load(saved, change(LIKE))


# ---- freezing -----------------------------------------------------------------------------------


def test_from_a_file_to_frozen_entries(tmp_path):
    """A core found by the Taylor rule, saved, loaded and frozen while its twin is not."""
    shape = dict(vocab_size=23, context=8, layers=1, width=16, heads=4, kv_heads=2, mlp_width=24)
    model = LanguageModel(llama(layers_as="unrolled", **shape))
    random = np.random.default_rng(2)
    params = jax.tree.map(
        lambda spec: random.normal(spec.constant, 0.1, spec.shape).astype(np.float32), model.specs
    )
    batch = {
        "tokens": random.integers(0, 23, (4, 9)).astype(np.int32),
        "weights": np.ones((4, 8), np.float32),
    }
    importance = regions.taylor(model.loss, params, [batch])
    path = tmp_path / "core.npz"
    masks.save(path, {"core": regions.select(importance, 0.05, "top")}, {"share": 0.05})

    core = masks.load(path, model.specs)[0]["core"]
    nothing = jax.tree.map(np.zeros_like, core)
    member = {"seed": 0, "stream": 0, "learning_rate": 0.01, "weight_decay": 0.5}
    population = Population(
        init=model.init,
        loss=model.loss,
        transform=lambda batch, member: {
            "tokens": batch["tokens"],
            "weights": jnp.ones((4, 1)),
            "groups": {},
        },
        optimizer=OptimizerConfig(steps=4, decay_table=((r".*", True),)),
        members=member_arrays([member | {"frozen": mask} for mask in (core, nothing)]),
        mesh=make_mesh(devices=jax.devices()[:1]),
    )
    batches = [{"tokens": batch["tokens"][None], "index": np.int32(k)} for k in range(4)]
    states, metrics = population.steps(population.start(params), population.stage(batches))

    size = 0
    leaves = map(jax.tree.leaves, (jax.device_get(states.params), params, core))
    for (name, _), after, before, mask in zip(tree.named_leaves(core), *leaves, strict=True):
        assert after[0][mask].tobytes() == before[mask].tobytes(), name
        assert (after[0] != before)[~mask].mean() > 0.9, name
        assert (after[1] != before).mean() > 0.9, name
        assert mask.any() == (name.startswith("blocks") and mask.size >= 11), name
        size += np.count_nonzero(mask)
    assert size == sum(
        regions.count(0.05, math.prod(spec.shape))
        for name, spec in tree.named_leaves(model.specs)
        if name.startswith("blocks")
    )
    losses = metrics["loss"][..., 0]
    assert losses[0, 0] == losses[1, 0]
    assert losses[0, -1] != losses[1, -1]
