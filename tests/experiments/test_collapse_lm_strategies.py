"""Strategies of the collapse study: what is mixed, who wrote it, and what is said of it.

The whole study is run small by its own tests; here training and writing are pretended.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import load

from lmnoise.assemble import members_of, steps_of
from lmnoise.checkpoints import Checkpoint
from lmnoise.data.packing import prepare
from lmnoise.data.user_files import UserFiles
from lmnoise.errors import UserError
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.theory.collapse import mixing_weights

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import collapse_lm_generations as generations  # noqa: E402
import collapse_lm_iterate as iterate  # noqa: E402
import collapse_lm_lineages as lineages  # noqa: E402
import collapse_lm_runs as runs  # noqa: E402
import collapse_lm_weights as weights  # noqa: E402

CONFIGS = load(ROOT / "configs" / "collapse_lm.py")
REPLACE, ACCUMULATE, SUBSAMPLE = generations.SCHEMES


def small(folder=Path("text")):
    """The laptop preset as the tests can run it, on the text of a folder."""
    config = CONFIGS.get_config("laptop")
    config.update(CONFIGS.SMALL)
    own = f"{folder}/"
    config.data.update(dict(source=own, evaluate=(own,), data_dir=str(folder.parent / "data")))
    return config


@pytest.fixture
def trained(monkeypatch):
    """The config of each round by its folder; texts say who wrote them, and models are names."""
    found = {}

    def train_round(config, folder, title):
        found[folder] = config
        seeds = config.members.seed
        return runs.Round(
            np.arange(len(seeds)) + 10.0 * len(found), {seed: f"{folder}#{seed}" for seed in seeds}
        )

    def write_texts(config, workdir, models, name, steps, **recipe):
        for seed, model in models.items():
            folder = workdir / "synthetic" / name / str(seed)
            folder.mkdir(parents=True)
            lines = [json.dumps({"text": model, "recipe": recipe}) for _ in range(3)]
            (folder / "part-00000.jsonl").write_text("\n".join(lines))

    for part in (iterate, generations):
        monkeypatch.setattr(part, "train_round", train_round)
        monkeypatch.setattr(part, "write_texts", write_texts)
    return found


def writers(config, seed):
    """Who wrote the synthetic text of a seed, each as often as there are texts."""
    folder = config.noise.source.replace("{seed}", str(seed))
    return sorted(document.text for document in UserFiles(folder).documents())


def tokens_of(config):
    """Tokens of training of each of the members, which have as many."""
    [tokens] = {steps_of(m, config) for m in members_of(config)}
    return tokens * config.train.batch_size * config.data.length


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 100))
def test_the_fraction_of_a_weight_is_that_of_the_theorys_weights(share, weight):
    a = weights.fraction(weight, share)
    real, synthetic = mixing_weights(a, share)
    np.testing.assert_allclose(synthetic / real, weight, rtol=1e-9)
    assert weights.fraction(0.0, share) == 0
    np.testing.assert_allclose(weights.fraction(1.0, share), share)


@settings(deadline=None)
@given(st.integers(1, 50))
def test_every_accumulated_generation_is_trained_on_as_much_real_text(generation):
    shares = {s: generations.synthetic_share(s, generation) for s in generations.SCHEMES}
    tokens = {s: generations.budgets(s, generation) for s in generations.SCHEMES}
    assert shares[REPLACE] == 1
    assert tokens[REPLACE] == tokens[SUBSAMPLE] == 1
    assert shares[ACCUMULATE] == shares[SUBSAMPLE]
    np.testing.assert_allclose(tokens[ACCUMULATE] * (1 - shares[ACCUMULATE]), 1)
    np.testing.assert_allclose(tokens[ACCUMULATE] * shares[ACCUMULATE], generation)


def test_a_union_holds_the_documents_of_all_and_stays_as_prepared(tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
        for part in range(2):
            lines = [json.dumps({"text": f"{folder.name} {part} {i}"}) for i in range(5)]
            (folder / f"part-{part:05d}.jsonl").write_text("\n".join(lines))
        (folder / "generator.json").write_text("{}")
    for number in (2, 3):
        generations.union(folders[:number], tmp_path / f"union-{number}")
        found = {d.text for d in UserFiles(f"{tmp_path / f'union-{number}'}").documents()}
        assert found == {
            f"{f.name} {p} {i}" for f in folders[:number] for p in range(2) for i in range(5)
        }
    options = dict(data_dir=tmp_path / "data", tokenizer="bytes")
    before = prepare(f"{tmp_path / 'union-3'}/", **options)
    generations.union(folders, tmp_path / "union-3")
    assert prepare(f"{tmp_path / 'union-3'}/", **options) == before


def random_model(config, seed):
    """A model of one layer and of random parameters, which writes bytes."""
    own = gpt2(
        vocab_size=257, context=config.data.length, layers=1, width=16, heads=2,
        layers_as="unrolled",
    )  # fmt: skip
    model = LanguageModel(own)
    params = jax.device_get(model.init(jax.random.key(seed)))
    return Checkpoint(f"model-{seed}", model, params, "bytes", None, None, f"model {seed}", "")


@pytest.fixture
def compiled_soon():
    """Programs that are compiled fast and run slowly."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("one_device", "compiled_soon")
def test_relabelled_texts_keep_their_beginnings_and_change_after_them(tmp_path):
    (tmp_path / "text").mkdir()
    letters = np.random.default_rng(0).choice(list("aeiou nrst"), size=(20, 200))
    for i, row in enumerate(letters):
        (tmp_path / "text" / f"{i}.txt").write_text("".join(row))
    config = small(tmp_path / "text")
    prepare(config.data.source, data_dir=config.data.data_dir, tokenizer="bytes")
    own, rounds = config.iterate, []
    for number in range(2):
        [folder] = lineages.write_texts(
            config, tmp_path, {0: random_model(config, number)}, f"round-{number}", 1,
            prompt_tokens=own.prompt_tokens, length=12,
        )  # fmt: skip
        lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.open()]
        rounds.append([json.loads(line)["text"] for line in lines])
    kept, count = own.prompt_tokens, min(map(len, rounds))
    first, second = (texts[:count] for texts in rounds)
    assert [text[:kept] for text in first] == [text[:kept] for text in second]
    assert not {text[kept:] for text in first} & {text[kept:] for text in second}
    real = ["".join(row) for row in letters]
    assert all(any(text[:kept] in row for row in real) for text in first)


def test_each_round_reads_what_the_round_before_wrote(trained, tmp_path):
    config = small()
    config.iterate.rounds = 3
    models = {seed: f"generator {seed}" for seed in config.members.seed}
    result = iterate.run(config, tmp_path, runs.Study(models, np.zeros(2), None))
    place = tmp_path / "iterate"
    starts = {
        "from-generator": models,
        "from-real-part": {s: f"{place / 'alone'}#{s}" for s in models},
    }
    for name, start in starts.items():
        for t in (1, 2, 3):
            read = trained[place / name / str(t)]
            assert read.members.rate == (config.iterate.share,)
            assert read.members.noise_weight == (1.0,)
            for seed in models:
                before = start[seed] if t == 1 else f"{place / name / str(t - 1)}#{seed}"
                assert set(writers(read, seed)) == {before}
    assert trained[place / "alone"].members.noise_weight == (0.0,)
    assert trained[place / "alone"].members.rate == (config.iterate.share,)
    assert {tokens_of(own) for own in trained.values()} == {result.tokens}
    assert [losses_TR.shape for losses_TR in result.losses_TR.values()] == [(3, 2), (3, 2)]


def test_each_generation_reads_what_its_own_lineage_wrote(trained, tmp_path):
    config = small()
    config.generations.count = 3
    result = generations.run(config, tmp_path, runs.Study({}, np.zeros(2), None))
    place = tmp_path / "generations"
    assert trained[place / "0"].members.rate == (0.0,)
    for scheme in generations.SCHEMES:
        own = [place / "0", *(place / scheme / str(t) for t in (1, 2, 3))]
        for t in (1, 2, 3):
            read = trained[own[t]]
            [share] = read.members.rate
            # Tokens of real text and of synthetic text, in those of generation 0.
            mixed = tokens_of(read) / result.tokens * np.array([1 - share, share])
            expected = {REPLACE: (0, 1), ACCUMULATE: (1, t), SUBSAMPLE: (1 / (t + 1), t / (t + 1))}
            np.testing.assert_allclose(mixed, expected[scheme])
            first = t - 1 if scheme == REPLACE else 0
            for seed in config.members.seed:
                wrote = [f"{folder}#{seed}" for folder in own[first:t] for _ in range(3)]
                assert writers(read, seed) == sorted(wrote)
        assert result.losses_TR[scheme].shape == (4, 2)
    assert len({str(own.train.steps) for own in trained.values()}) == 2


def planted_weights():
    """Weight 1 is better at first and worse at last; weight 4 differs by chance alone."""
    tokens_B = np.array([1e3, 2e3, 4e3])
    base_RB = np.array([[3.0, 2.5, 2.2], [3.1, 2.6, 2.3], [3.05, 2.52, 2.21]])
    tilt_RB = np.array([-0.2, 0.0, 0.2]) + 0.001 * np.array([[1.0], [-1.0], [0.5]])
    noise_RB = 0.1 * np.array([[1, -1, 1], [-1, 1, -1], [0.1, 0.1, 0.1]])
    losses_WRB = np.stack([base_RB, base_RB + tilt_RB, base_RB + noise_RB])
    return weights.Weighted((0.5,), (0.0, 1.0, 4.0), tokens_B, losses_WRB[:, None])


def test_what_is_said_of_weights_follows_the_numbers(tmp_path):
    config, result = small(), planted_weights()
    [sentence] = weights.seen(result, config)
    assert "(4,000 tokens)" in sentence
    one, four = sentence.split("w = 4")
    assert "(worse)" in one
    assert "(not shown)" in four
    one, four = weights._trends(result).split("w = 4")
    assert "(rises)" in one
    assert "(not shown)" in four
    turned = weights.Weighted(
        (0.5,), (0.0, 1.0, 4.0), result.tokens_B, result.losses_WPRB[..., ::-1]
    )
    assert "w = 1 -0.200" in weights.seen(turned, config)[0]
    assert "(better), w = 4" in weights.seen(turned, config)[0]
    table = weights.blocks(result, config, tmp_path)[-1]
    verdicts = {(row[1], row[2]): row[-1] for row in table.rows}
    assert [verdicts[tokens, "1"] for tokens in (1000, 4000)] == ["better", "worse"]
    assert verdicts[1000, "0"] == "the real part alone"
    np.testing.assert_allclose([row[3] for row in table.rows[:3]], [0, 0.5, 0.8])


def test_regression_is_drawn_to_lose_by_any_weight_when_data_are_many():
    config, result = small(), planted_weights()
    config.weights.update(dict(theory_ratio=1e-3, theory_quality=0.1))
    expected_WPB = weights.expected(config, result)
    assert (expected_WPB[1:] > 0).all()
    np.testing.assert_array_equal(expected_WPB[0], 0)
    config.weights.theory_ratio = 0.2
    assert weights.expected(config, result)[1, 0, 0] < 0


def test_what_is_said_of_relabelling_follows_the_numbers(tmp_path):
    alone_R = np.array([3.0, 3.1, 3.05])
    steps_TR = np.array([[0.1], [0.05], [0.0]]) + 0.001 * np.array([1.0, -1.0, 0.5])
    losses_TR = {iterate.GENERATOR: alone_R + steps_TR, iterate.ALONE: alone_R - steps_TR[::-1]}
    result = iterate.Iterated(0.5, 1000, alone_R + 0.3, alone_R, losses_TR)
    [sentence] = iterate.seen(result, small())
    from_generator, from_real = sentence.split("; begun by the real part alone")
    last, gained = from_generator.split("after one round ")[1].split(", by ")
    assert last.startswith("(worse)")
    assert "(not shown)" in last
    assert "(better)" in gained
    assert from_real.count("(better)") == 2
    table = iterate.blocks(result, small(), tmp_path)[-1]
    found = [row[3] for row in table.rows[2:]]
    assert found == ["worse", "worse", "not shown", "not shown", "better", "better"]


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 0.95))
def test_the_limits_of_relabelling_are_those_of_the_notes(share):
    """`s1^2 d/n1 + p2 s2^2 phi/(1 - p2^2)` and `s^2 phi/(1 - p2^2)` over `s^2 d/n1`."""
    real = 1 - share
    same, fresh = iterate.limits(share)
    np.testing.assert_allclose(same, 1 + real * share / (1 - share**2), rtol=1e-3)
    np.testing.assert_allclose(fresh, real / (1 - share**2), rtol=1e-3)


def planted_generations():
    """Replaced data make the loss rise in proportion; accumulated ones let it fall."""
    first_R, t_T1 = np.array([4.0, 4.1, 3.9]), np.arange(4.0)[:, None]
    noise_R = 0.001 * np.array([1.0, -1.0, 0.2])
    wobble_T1 = np.array([[0.0], [1.0], [-1.0], [1.0]])
    return generations.Generations(
        1000,
        {
            REPLACE: first_R + 0.1 * t_T1 + wobble_T1 * noise_R,
            ACCUMULATE: first_R - 0.02 * t_T1 + wobble_T1 * noise_R,
            SUBSAMPLE: first_R + 5 * wobble_T1 * noise_R,
        },
    )


def test_what_is_said_of_generations_follows_the_numbers(tmp_path):
    result = planted_generations()
    [sentence] = generations.seen(result, small())
    replaced, rest = sentence.split("accumulate ", 1)
    accumulated, subsampled = rest.split("; accumulate-subsample ", 1)
    assert "(worse)" in replaced
    assert "(better, 4 times the tokens)" in accumulated
    assert "(not shown)" in subsampled
    details = generations._details(result)
    assert "(better)" in details
    assert details.endswith("(no difference shown from regression's straight line).")
    table = generations.blocks(result, small(), tmp_path)[-1]
    assert [row[3] for row in table.rows] == [1000] * 4 + [1000, 2000, 3000, 4000] + [1000] * 4


def test_the_form_of_regression_is_scaled_by_the_first_rise():
    result = planted_generations()
    rise = result.rises(REPLACE)[1].mean
    np.testing.assert_allclose(
        generations.predicted(result, accumulate=False), rise * np.arange(4), rtol=1e-9
    )
    np.testing.assert_allclose(
        generations.predicted(result, accumulate=True),
        rise * np.array([0, 1 / 4, 1 / 4 + 1 / 9, 1 / 4 + 1 / 9 + 1 / 16]),
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("part", "section", "changes", "named"),
    [
        (weights, "weights", dict(weights=(0.5, 1.0)), "weights.weights"),
        (weights, "weights", dict(shares=(0.3,)), "weights.shares"),
        (weights, "weights", dict(duration=(0.25,)), "weights needs"),
        (iterate, "iterate", dict(share=1.0), "config.iterate"),
        (iterate, "iterate", dict(prompt_tokens=24), "iterate.prompt_tokens"),
        (generations, "generations", dict(count=1), "config.generations"),
    ],
)
def test_what_cannot_be_compared_is_refused(part, section, changes, named):
    config = small()
    part.check(config)
    config[section].update(changes)
    with pytest.raises(UserError, match=named):
        part.check(config)


def test_every_preset_can_be_compared():
    for preset in CONFIGS.PRESETS:
        for part in (weights, iterate, generations):
            part.check(CONFIGS.get_config(preset))
