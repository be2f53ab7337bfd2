"""The numbers of an analysis against a recomputation by hand, and what it refuses."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmnoise.analyze import continued, parameters, perturb, regions
from lmnoise.analyze import subject as subject_module
from lmnoise.analyze.checks import RULES
from lmnoise.analyze.defaults import default_config
from lmnoise.analyze.subject import metrics, open_subject, rises, unchanged
from lmnoise.checkpoints import open_checkpoint
from lmnoise.data.packing import open_packed
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation import masks
from lmnoise.models.transformer import LanguageModel

SMALL = dict(
    data=dict(length=16, batch_size=8),
    continuation=dict(prompts=(), new_tokens=4),
    perturb=dict(
        seeds=(0, 1),
        strengths=dict(gaussian=(0.0, 1.0), zero=(), reinitialise=(), scale=(1.0,), quantise=()),
    ),
    regions=dict(
        importance_windows=16, shares=(0.05,), operations=("zero",), seeds=(0,), windows=8
    ),
)


@pytest.fixture
def config(small):
    return small(default_config(), SMALL)


@pytest.fixture
def subject(config, run_folder, tmp_path):
    return open_subject(str(run_folder), config, config.perturb.sources, 8, tmp_path)


def loss_by_hand(subject, config, params, name):
    """Mean loss over the first 8 windows spread over the validation split."""
    packed = open_packed(
        name, "validation", data_dir=config.data.data_dir, tokenizer=subject.checkpoint.tokenizer
    )
    windows = (len(packed.tokens) - 1) // 16
    starts = np.arange(8) * windows // 8 * 16
    tokens = jnp.stack([np.array(packed.tokens[s : s + 17], np.int32) for s in starts])
    return float(subject.model.loss(params, {"tokens": tokens}, None).mean())


def test_the_baseline_is_the_mean_loss_of_its_windows(subject, config):
    found = metrics(subject.baseline())
    for name, source in zip(config.perturb.sources, found.values(), strict=True):
        by_hand = loss_by_hand(subject, config, subject.checkpoint.params, name)
        assert source["loss"][0] == pytest.approx(by_hand, abs=1e-5)


def test_the_token_that_a_model_wants_in_front(subject, config, tmp_path, monkeypatch):
    """Every window begins with it, and no stored result of other windows is taken for it."""
    marked = dataclasses.replace(subject.checkpoint, bos_id=256)
    monkeypatch.setattr("lmnoise.analyze.subject.open_checkpoint", lambda *_: marked)
    other = open_subject("marked", config, config.perturb.sources, 8, tmp_path)
    assert other.identity != subject.identity
    for ours, plain in zip(other.sources, subject.sources, strict=True):
        for batch, before in zip(ours.batches, plain.batches, strict=True):
            assert (batch["tokens"][:, 0] == 256).all()
            np.testing.assert_array_equal(batch["tokens"][:, 1:], before["tokens"][:, 1:])
    config.continuation.update(dict(prompts=("a",), new_tokens=2))
    asked = []
    monkeypatch.setattr(
        "lmnoise.analyze.subject.generate_variants",
        lambda model, params, prompts, *_: asked.extend(prompts) or [[]],
    )
    other.continuations(config.continuation, unchanged, {})
    assert asked == [[256, ord("a")]]


def test_a_perturbation_of_no_strength_costs_nothing(subject, config):
    found = perturb.measure(subject, config)["rises"]
    for of_source in (found["gaussian"][0.0], found["scale"][1.0]):
        assert all(abs(estimate.mean) < 1e-6 for estimate in of_source.values())
    assert all(abs(estimate.mean) > 1e-4 for estimate in found["gaussian"][1.0].values())


@pytest.mark.parametrize("rule", RULES)
def test_zeroing_the_core_is_setting_its_entries_to_zero(rule, run_folder, config, tmp_path):
    config.regions.rule = rule
    config.regions.training.update(dict(steps=3, batch_size=8, learning_rate=1e-3))
    subject = open_subject(str(run_folder), config, config.regions.sources, 8, tmp_path)
    found = regions.measure(subject, config)
    stored, about = masks.load(
        tmp_path / "masks" / found["masks"].rpartition("/")[2], subject.params
    )
    assert about["rule"] == rule
    core = stored["core-0.05"]
    without = jax.tree.map(lambda p, m: np.where(m, 0, p), subject.checkpoint.params, core)
    [row] = [row for row in found["rises"] if row["region"] == "core"]
    for name, (source, [rise]) in zip(config.regions.sources, row["rises"].items(), strict=True):
        expected = loss_by_hand(subject, config, without, name) - found["loss"][source]
        assert rise.mean == pytest.approx(expected, abs=1e-5)
    # Every kernel and norm of the blocks gives its share, the embeddings nothing.
    sizes = {n: leaf.sum() / leaf.size for n, leaf in core["blocks"][0]["mlp"]["up"].items()}
    assert sizes["kernel"] == pytest.approx(0.05, abs=1 / 512)
    assert not core["tokens"].any()


def test_the_change_rule_ranks_by_how_far_training_moves(run_folder, config, tmp_path):
    config.regions.update(dict(rule="change"))
    config.regions.training.update(dict(steps=3, batch_size=8, learning_rate=1e-3))
    subject = open_subject(str(run_folder), config, config.regions.sources, 8, tmp_path)
    section = config.regions
    regions.prepare_all(section.languages, subject.checkpoint, subject.data)
    own = regions.Regions(subject, section, "change")
    moved_by = next(own.importances())[1]
    run = continued.Continued(subject, section.training)
    population = run.population()
    start, language = subject.checkpoint.params, section.languages[0]
    states = run.run(population, language, start, tmp_path / "again", {}, "again")
    for moved, after, before in zip(
        *map(jax.tree.leaves, (moved_by, states.params, subject.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(moved, np.abs(np.asarray(after[0]) - before))
    core, opposite = own.mask("core", 0.05), own.mask("opposite", 0.05)
    for low, high, total in zip(*map(jax.tree.leaves, (core, opposite, own.total)), strict=True):
        if low.any():
            assert total[low].max() <= total[high].min()


def test_a_signal_stops_the_training_of_an_analysis(run_folder, config, tmp_path, monkeypatch):
    monkeypatch.setattr(continued, "fit", lambda *arguments, **options: None)
    config.regions.rule = "change"
    subject = open_subject(str(run_folder), config, config.regions.sources, 8, tmp_path)
    with pytest.raises(Stopped):
        regions.measure(subject, config)


PARAMETERS = dict(
    massive_dimensions=1,
    norm_weights=1,
    super_weights=1,
    matched=1,
    random=1,
    scales=(0.0,),
    draws=1,
)


def test_a_stored_result_holds_for_its_own_settings_only(run_folder, config, tmp_path):
    """What depends on a key is computed again when it changes, and nothing else."""
    config.parameters.update(PARAMETERS)

    def kinds():
        subject = open_subject(str(run_folder), config, config.parameters.sources, 8, tmp_path)
        parameters.measure(subject, config)
        lines = (tmp_path / "points.jsonl").read_text().splitlines()
        return [json.loads(line)["setting"]["what"] for line in lines]

    first = kinds()
    assert kinds() == first
    config.data.batch_size = 4
    second = kinds()[len(first) :]
    assert set(second) >= {"activations", "scan"}
    assert "screen" not in second
    config.parameters.norm_weights = 2
    third = kinds()[len(first) + len(second) :]
    assert third == ["trial", "trial"]


def test_masks_of_other_shares_are_another_file(run_folder, config, tmp_path):
    config.regions.operations = ("zero",)
    files = []
    for shares in ((0.05,), (0.05, 0.1)):
        config.regions.shares = shares
        subject = open_subject(str(run_folder), config, config.regions.sources, 8, tmp_path)
        file = regions.measure(subject, config)["masks"].rpartition("/")[2]
        files.append(set(masks.load(tmp_path / "masks" / file, subject.params)[0]))
    assert files == [{"core-0.05"}, {"core-0.05", "core-0.1"}]


@pytest.mark.parametrize(
    "fields",
    [
        dict(query_key_norm="head"),  # as Qwen3
        dict(norm_position="after", query_key_norm="whole"),  # as OLMo2
        dict(norm="layernorm_fixed"),  # as OLMo: no norm has a weight
    ],
)
def test_single_parameters_of_other_classes(fields, run_folder, config, tmp_path, monkeypatch):
    def other(spec, data_dir):
        found = open_checkpoint(spec, data_dir)
        model = LanguageModel(dataclasses.replace(found.model.config, heads=4, **fields))
        params = jax.device_get(model.init(jax.random.key(0)))
        return dataclasses.replace(found, model=model, params=params)

    monkeypatch.setattr(subject_module, "open_checkpoint", other)
    config.parameters.update(PARAMETERS | dict(scan=()))
    subject = open_subject(str(run_folder), config, config.parameters.sources, 8, tmp_path)
    found = parameters.measure(subject, config)
    has_norms = fields.get("norm") is None
    assert bool(found["screened"]) == has_norms
    assert not any("query" in row["leaf"] or "key" in row["leaf"] for row in found["screened"])
    assert len({row["candidate"] for row in found["trials"]}) == 1 + has_norms
    config.parameters.scan = ("blocks/0/attention/query_norm/scale",)
    with pytest.raises(UserError, match="no norm weight of run-40"):
        parameters.measure(subject, config)


def test_rises_are_paired(subject):
    baseline = subject.baseline()
    for estimates in rises(baseline, baseline).values():
        assert [tuple(estimate)[:2] for estimate in estimates] == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perturb.unit": "inches"}, "config.perturb.unit must be one of weight_rms"),
        ({"perturb.pattern": "block[0"}, "config.perturb.pattern"),
        ({"perturb.pattern": "nothing"}, "config.perturb.pattern"),
        ({"regions.rule": "taste"}, "config.regions.rule must be one of taylor, change"),
        ({"regions.operations": ("melt",)}, "config.regions.operations"),
        ({"regions.shares": (1.5,)}, "config.regions.shares"),
        ({"parameters.scan": ("blocks/9/norm",)}, "config.parameters.scan has 'blocks/9/norm'"),
        ({"perturb.strengths": dict(zero=(2.0,))}, "config.perturb.strengths.zero has 2.0"),
        ({"perturb.strengths": dict(quantise=(2.5,))}, "config.perturb.strengths.quantise has 2.5"),
        ({"perturb.strengths": dict(gaussian=())}, "config.perturb.strengths is empty"),
        ({"perturb.strengths": dict(melt=(1,))}, "config.perturb.strengths has 'melt'"),
        ({"regions.sources": ("a/x", "b/x")}, "two corpora that tables would call 'x'"),
        ({"regions.languages": ("a", "b")}, "config.regions.sources lacks the language a"),
        ({"finetune.tasks": ()}, "config.finetune.tasks is empty"),
        ({"finetune.schedule": "steep"}, "config.finetune.schedule must be one of cosine"),
        ({"finetune.warmup_fraction": 2}, "config.finetune.warmup_fraction must be in [0, 1]"),
        ({"finetune.methods": dict(low=dict(rank=(1,)))}, "config.finetune.methods.low lacks lea"),
        ({"finetune.methods": dict(a=dict(rate=(1,)))}, "config.finetune.methods.a has 'rate'"),
        (
            {"finetune.methods": dict(a=dict(learning_rate=1.0))},
            "config.finetune.methods.a.learning_rate must be a tuple of values, not 1.0",
        ),
        (
            {"finetune.methods": dict(a=dict(learning_rate=(-1.0,)))},
            "config.finetune.methods.a: learning_rate must be above 0, not -1.0",
        ),
        ({"parameters.matched": 20}, "config.parameters.matched asks for"),
        ({"parameters.massive_dimensions": 16}, "config.parameters.massive_dimensions asks for 16"),
        ({"continuation.prompts": ("",)}, "config.continuation.prompts has '' of 0 tokens"),
        ({"continuation.prompts": ("much too long for it",)}, "for the context of run-40"),
        ({"data.length": 100}, "config.data.length is 100, but run-40 has a context of 16"),
        ({"data.split": "tests"}, "no split 'tests'"),
        ({"data.batch_size": 0}, "config.data.batch_size"),
    ],
)
def test_a_key_without_sense_is_named(changes, words, run_folder, config, tmp_path):
    for key, value in changes.items():
        section, name = key.split(".")
        with config.unlocked():
            config[section][name] = ConfigDict(value) if isinstance(value, dict) else value
    analysis = {"perturb": perturb, "regions": regions, "parameters": parameters}
    chosen = analysis.get(section, perturb)

    def measure():
        subject = open_subject(str(run_folder), config, chosen.names(config), 8, tmp_path)
        chosen.measure(subject, config)

    with pytest.raises(UserError, match=re.escape(words)):
        measure()


def test_the_first_word_is_the_analysis():
    done = subprocess.run(
        [sys.executable, "-m", "lmnoise.analyze", "regoins"], capture_output=True, text=True
    )
    assert done.returncode == 2
    known = "language, perturb, regions, parameters, finetune, features, synthetic"
    assert f"one of {known}, not 'regoins'" in done.stderr
    assert "Traceback" not in done.stderr
