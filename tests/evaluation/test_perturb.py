"""What a perturbation touches, by how much, and that it depends on its key and strength alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise import tree
from lmnoise.evaluation import variants
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.perturb import KINDS, UNITS, Perturbation, perturb, quantise, sensitivity
from lmnoise.models.transformer import LanguageModel, Spec, llama
from lmnoise.training import mesh as meshes

SPECS = {
    "blocks": {
        i: {
            "attention": {"query": {"kernel": Spec((16, 16), ("width", "heads"), 0.02)}},
            "mlp": {"up": {"kernel": Spec((16, 24), ("width", "mlp"), 0.02)}},
        }
        for i in (0, 1)
    },
    "tokens": Spec((50, 16), ("vocab", "width"), 0.02),
    "final_norm": {"scale": Spec((16,), ("width",), 0.0, constant=1.0)},
}


def drawn(name, spec):
    """Entries that differ within each leaf, and zeros of both signs among them."""
    random = np.random.default_rng(len(name))
    leaf = spec.constant + 0.1 * random.normal(size=spec.shape)
    leaf.reshape(-1)[:2] = -0.0, 0.0
    return jnp.array(leaf, jnp.float32)


PARAMS = tree.map_named(drawn, SPECS)
NEUTRAL = {"gaussian": 0.0, "zero": 0.0, "reinitialise": 0.0, "scale": 1.0}
ATTENTION = ((r".*/attention/.*", True), (r".*", False))
few = functools.partial(settings, max_examples=15, deadline=None)
seeds = st.integers(0, 2**31 - 1)
unitwise = st.sampled_from(
    [Perturbation("gaussian", unit) for unit in UNITS] + [Perturbation(k) for k in KINDS[1:]]
)


@functools.cache
def compiled(perturbation, specs=lambda: SPECS):
    """`run(params, seed, strength, mask)`, one program a perturbation."""

    @jax.jit
    def run(params, seed, strength, mask):
        key = jax.random.key(seed)
        return perturb(params, key, strength, perturbation, specs=specs(), mask=mask)

    return run


def strength_for(perturbation, share):
    """A strength that changes something, from a number in (0, 1)."""
    return 1 + int(3 * share) if perturbation.kind == "quantise" else share


def bits(tree_):
    return {name: np.asarray(leaf).view(np.uint32) for name, leaf in tree.named_leaves(tree_)}


def masked(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: random.random(a.shape) < 0.5, PARAMS)


@pytest.mark.parametrize("table", [((".*", True),), ((".*norm.*", 0.3), (".*", 2.5))], ids=str)
@pytest.mark.parametrize(("kind", "strength"), NEUTRAL.items())
def test_the_neutral_strength_changes_no_bit(kind, strength, table):
    for unit in UNITS if kind == "gaussian" else UNITS[:1]:
        found = bits(compiled(Perturbation(kind, unit, table))(PARAMS, 3, strength, None))
        for name, expected in bits(PARAMS).items():
            np.testing.assert_array_equal(found[name], expected, err_msg=name)


@few()
@given(unitwise, seeds, st.floats(0.05, 0.95))
def test_what_table_and_mask_leave_out_keeps_its_bits(perturbation, seed, share):
    perturbation = dataclasses.replace(perturbation, table=ATTENTION)
    strength, mask = strength_for(perturbation, share), masked(seed % 7)
    free = compiled(perturbation)(PARAMS, seed, strength, None)
    found, kept = bits(compiled(perturbation)(PARAMS, seed, strength, mask)), bits(PARAMS)
    allowed = dict(tree.named_leaves(mask))
    for name, unmasked in bits(free).items():
        selected = allowed[name] & ("/attention/" in name)
        np.testing.assert_array_equal(found[name][~selected], kept[name][~selected], err_msg=name)
        # Two programs may round the mean of a leaf in two ways.
        one, other = (a[selected].view(np.float32) for a in (found[name], unmasked))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7, err_msg=name)
        if "/attention/" not in name:
            np.testing.assert_array_equal(unmasked, kept[name], err_msg=name)
    changed = free["blocks"][1]["attention"]["query"]["kernel"]
    assert not np.array_equal(changed, PARAMS["blocks"][1]["attention"]["query"]["kernel"])


@few()
@given(unitwise, seeds, st.floats(0.05, 0.95))
def test_it_is_reproducible_and_blind_to_the_other_leaves(perturbation, seed, share):
    strength = strength_for(perturbation, share)
    whole = compiled(perturbation)(PARAMS, seed, strength, None)
    part = {"blocks": {1: {"mlp": PARAMS["blocks"][1]["mlp"]}}, "tokens": PARAMS["tokens"]}
    alone = compiled(perturbation)(part, seed, strength, None)
    for name, leaf in tree.named_leaves(alone):
        expected = dict(tree.named_leaves(whole))[name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=name)
    again = compiled(perturbation)(PARAMS, seed, strength, None)
    for (name, mine), other in zip(bits(again).items(), bits(whole).values(), strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=name)


@few()
@given(st.sampled_from(["gaussian", "zero", "reinitialise"]), seeds)
def test_seeds_and_leaves_draw_for_themselves(kind, seed):
    run = compiled(Perturbation(kind))
    one, two = (run(PARAMS, s, 0.5, None)["blocks"] for s in (seed, seed ^ 1))
    start = PARAMS["blocks"]
    changes = [
        np.asarray(a[i]["mlp"]["up"]["kernel"] - start[i]["mlp"]["up"]["kernel"]) != 0
        if kind != "gaussian"
        else np.asarray(a[i]["mlp"]["up"]["kernel"] - start[i]["mlp"]["up"]["kernel"]) > 0
        for a in (one, two)
        for i in (0, 1)
    ]
    for mine, other in itertools.combinations(changes, 2):
        assert 0.3 < (mine == other).mean() < 0.7


@few()
@given(st.sampled_from(["zero", "reinitialise"]), seeds, st.tuples(*[st.floats(0, 1)] * 2))
def test_a_larger_share_contains_a_smaller_one(kind, seed, shares):
    run, small, large = compiled(Perturbation(kind)), *sorted(shares)
    few_hit, many_hit = (run(PARAMS, seed, share, None) for share in (small, large))
    for (name, a), b, start in zip(
        tree.named_leaves(few_hit), jax.tree.leaves(many_hit), jax.tree.leaves(PARAMS), strict=True
    ):
        hit = np.asarray(a != start)
        np.testing.assert_array_equal(np.asarray(a)[hit], np.asarray(b)[hit], err_msg=name)
        if kind == "zero":
            assert not np.asarray(a)[hit].any()


BIG = {"kernel": 3 + 2 * jax.random.normal(jax.random.key(1), (200, 300))}
BIG_SPECS = {"kernel": Spec((200, 300), ("width", "width"), 0.02)}


def big_specs():
    return BIG_SPECS


def big(kind, seed, strength, **options):
    run = compiled(Perturbation(kind, **options), big_specs)
    return np.asarray(run(BIG, seed, strength, None)["kernel"])


@few()
@given(st.sampled_from(["zero", "reinitialise"]), seeds, st.sampled_from([0.01, 0.2, 0.7, 1.0]))
def test_the_share_is_the_strength(kind, seed, share):
    hit = big(kind, seed, share) != np.asarray(BIG["kernel"])
    assert abs(hit.mean() - share) <= 5 * np.sqrt(share * (1 - share) / hit.size)
    half = big(kind, seed, share / 2, table=((".*", 2),))
    np.testing.assert_array_equal(half != np.asarray(BIG["kernel"]), hit)


@few()
@given(seeds)
def test_drawn_anew_means_from_a_normal_of_the_leafs_moments(seed):
    new = big("reinitialise", seed, 1.0)
    root = np.sqrt(new.size)
    assert abs(new.mean() - 3) < 5 * 2 / root
    assert new.std() == pytest.approx(2, abs=5 * 2 / root)
    assert abs(np.corrcoef(new.ravel(), np.ravel(BIG["kernel"]))[0, 1]) < 5 / root


@few()
@given(seeds, st.sampled_from(UNITS), st.floats(0.01, 3))
def test_the_noise_is_normal_and_of_the_stated_size(seed, unit, strength):
    change = np.float64(big("gaussian", seed, strength, unit=unit)) - np.asarray(BIG["kernel"])
    size = {"weight_rms": np.sqrt(np.square(BIG["kernel"]).mean()), "init_std": 0.02, "absolute": 1}
    z, root = change / (strength * size[unit]), np.sqrt(change.size)
    # Differences of numbers near 3 keep 2e-7 of them.
    assert abs(z.mean()) < 5 / root
    assert np.sqrt(np.square(z).mean()) == pytest.approx(1, abs=5 / np.sqrt(2) / root + 1e-3)
    assert abs((z**3).mean()) < 5 * np.sqrt(15) / root
    assert (z**4).mean() == pytest.approx(3, abs=5 * np.sqrt(96) / root + 1e-2)


@few()
@given(seeds, st.floats(0.01, 2), st.floats(0.01, 2))
def test_the_strength_only_scales_the_direction(seed, one, other):
    first, second = (big("gaussian", seed, s) - np.asarray(BIG["kernel"]) for s in (one, other))
    np.testing.assert_allclose(first / one, second / other, atol=2e-6 * 3 / min(one, other))


@few()
@given(st.floats(-3, 3), st.sampled_from([0.5, 1, 2]))
def test_scaling(strength, multiplier):
    expected = np.asarray(BIG["kernel"]) * (1 + multiplier * (strength - 1))
    found = big("scale", 0, strength, table=((".*", multiplier),))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@few()
@given(seeds, st.integers(1, 8), st.sampled_from([-1, -2]))
def test_quantised_channels(seed, count, axis):
    """At most 2^bits levels, nearest ones, symmetric, and quantising again changes nothing."""
    random = np.random.default_rng(seed)
    theta = random.normal(size=(40, 30)).astype(np.float32) * random.uniform(0.1, 9)
    theta[3], theta[:, 4] = 0, 0
    found = np.asarray(quantise(theta, count, axis))
    channels = found if axis == -1 else found.T
    original = theta if axis == -1 else theta.T
    for channel, before in zip(channels, original, strict=True):
        levels = np.unique(channel)
        assert len(levels) <= 2**count
        if count > 1:
            largest = np.abs(before).max()
            step = largest / (2 ** (count - 1) - 1)
            assert np.abs(channel - before).max() <= step / 2 * (1 + 1e-4)
            np.testing.assert_allclose(channel, np.round(channel / (step or 1)) * step, rtol=1e-5)
        elif before.any():
            np.testing.assert_allclose(np.abs(channel), np.abs(before).mean(), rtol=1e-5)
    again = np.asarray(quantise(found, count, axis))
    if count == 1:
        np.testing.assert_allclose(again, found, rtol=1e-5)
    else:
        np.testing.assert_array_equal(again, found)
    mirrored = np.asarray(quantise(-theta, count, axis))
    np.testing.assert_allclose(mirrored[theta != 0], -found[theta != 0])


def test_which_axis_is_the_channel():
    found = compiled(Perturbation("quantise"))(PARAMS, 0, 1, None)
    kernel = np.abs(found["blocks"][0]["mlp"]["up"]["kernel"])
    assert len(np.unique(kernel[0])) > 1
    np.testing.assert_allclose(kernel, kernel[:1].repeat(16, 0), rtol=1e-6)
    embedding = np.abs(found["tokens"])
    np.testing.assert_allclose(embedding, embedding[:, :1].repeat(16, 1), rtol=1e-6)
    assert len(np.unique(np.abs(found["final_norm"]["scale"]))) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "sparkle"}, "kind must be one of"),
        ({"kind": "gaussian", "unit": "furlong"}, "unit must be one of"),
        ({"kind": "quantise", "table": ((".*", 2.0),)}, "quantise takes True or False"),
    ],
)
def test_what_a_perturbation_cannot_be(fields, words):
    with pytest.raises(ValueError, match=words):
        Perturbation(**fields)


def test_a_leaf_that_no_pattern_matches_is_an_error():
    with pytest.raises(KeyError, match="final_norm"):
        perturb(
            PARAMS,
            jax.random.key(0),
            0.1,
            Perturbation("zero", table=(("(tokens|blocks).*", True),)),
            specs=SPECS,
        )


def test_expected_loss_of_a_quadratic_is_half_the_trace_of_its_hessian():
    """E[loss(theta + sigma eps)] - loss(theta) = sigma^2 tr(H) / 2."""
    random = np.random.default_rng(0)
    root = random.normal(size=(12, 12))
    hessian, theta = root @ root.T / 12, random.normal(size=12)
    params = {"a": jnp.array(theta[:5], jnp.float32), "b": jnp.array(theta[5:], jnp.float32)}
    specs = dict.fromkeys(params, BIG_SPECS["kernel"])

    def loss(params, batch, key):
        x = jnp.concatenate([params["a"], params["b"]])
        return jnp.full((1, 1), 0.5 * x @ jnp.array(hessian, jnp.float32) @ x)

    rows = {"tokens": np.zeros((1, 2), np.int32), "document": np.zeros((1, 2), np.int32)}
    source = Source("quadratic", [rows | {"weights": np.ones((1, 1))}], np.ones(1))
    change = sensitivity(Perturbation("gaussian", "absolute"), specs)
    one = meshes.make_mesh(devices=jax.devices()[:1])
    evaluate = variants.evaluator(change, loss, [source], mesh=one, group=500)
    strengths = np.array([0.0, 0.3, 0.6, 0.9])
    members = {
        "strength": np.repeat(strengths, 1000),
        "seed": np.tile(np.arange(1000, dtype=np.int32), 4),
    }
    losses = evaluate(params, members)["quadratic"].losses_MD.reshape(4, 1000)
    excess = losses - losses[:1]
    for strength, values in zip(strengths[1:], excess[1:], strict=True):
        error = values.std(ddof=1) / np.sqrt(len(values))
        expected = strength**2 / 2 * np.trace(hessian)
        assert abs(values.mean() - expected) < 4 * error
        assert error < 0.2 * expected
    # The same direction at every strength: the loss along it is a parabola.
    slope, curve = np.linalg.solve([[0.3, 0.09], [0.6, 0.36]], excess[1:3])
    np.testing.assert_allclose(excess[3], 0.9 * slope + 0.81 * curve, rtol=1e-3, atol=1e-3)


def test_a_sweep_is_its_members_one_by_one():
    model = LanguageModel(
        llama(vocab_size=50, context=8, layers=1, width=16, heads=2, kv_heads=2, mlp_width=16)
    )
    params, random = model.init(jax.random.key(5)), np.random.default_rng(1)
    rows = {
        "tokens": random.integers(0, 50, (8, 9)).astype(np.int32),
        "document": np.repeat(np.arange(8, dtype=np.int32)[:, None], 9, 1),
        "weights": np.ones((8, 8), np.float32),
    }
    source, perturbation = Source("text", [rows], np.ones(8)), Perturbation("gaussian")
    mask = jax.tree.map(lambda a: random.random(a.shape) < 0.5, params)
    members = {"strength": np.array([0.0, 0.2, 0.2]), "seed": np.array([4, 4, 9], np.int32)}
    run, loss = compiled(perturbation, lambda: model.specs), jax.jit(model.loss)
    for mesh in (meshes.make_mesh(devices=jax.devices()[:1]), meshes.make_mesh(2, 1, 2, 2)):
        change = sensitivity(perturbation, model.specs)
        evaluate = variants.evaluator(change, model.loss, [source], mesh=mesh)
        found = evaluate(params, members, mask)["text"].losses_MD
        for m, (strength, seed) in enumerate(zip(*members.values(), strict=True)):
            own = run(params, int(seed), float(strength), mask)
            expected = loss(own, {"tokens": rows["tokens"]}, jax.random.key(0)).sum(1)
            np.testing.assert_allclose(found[m], expected, rtol=1e-5)
