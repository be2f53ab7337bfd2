"""Mixtures of two corpora in one population: shares up to all, weights, a corpus for each seed."""

import jax
import numpy as np
import pytest

from lmnoise.assemble import members_of
from lmnoise.config import default_config
from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.train import build, train

pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")
LETTERS = {"real": "ab", "synthetic/0": "cd", "synthetic/7": "ef"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny run on corpora that have no letter in common."""
    root = tmp_path_factory.mktemp("mixtures")
    rng = np.random.default_rng(0)
    for name, letters in LETTERS.items():
        (root / name).mkdir(parents=True)
        for i in range(20):
            text = "".join(rng.choice(list(letters), 90))
            (root / name / f"{i}.txt").write_text(text)
        prepare(str(root / name), data_dir=root / "data", tokenizer="bytes")
    own = default_config()
    own.data.update(dict(data_dir=str(root / "data"), tokenizer="bytes", length=16))
    own.data.update(dict(source=str(root / "real"), evaluate=(str(root / "real"),)))
    own.noise.source = str(root / "synthetic" / "{seed}")
    own.members.update(dict(seed=(7, 0), kind=("stream",), rate=(0.0, 0.5, 1.0)))
    own.model.update(dict(layers=1, width=16, heads=2))
    own.train.update(dict(steps=3, batch_size=8, checkpoint_every=0))
    return own


def letters_of(tokens):
    return set(bytes(tokens[tokens < 256].astype(np.uint8)).decode())


def test_every_seed_reads_its_own_corpus(config, tmp_path):
    run = build(config)
    assert run.batches(0)["noise"].shape == run.batches(0)["tokens"].shape
    for step in (0, 5):
        real, first, second = (
            letters_of(rows) for rows in (run.batches(step)["tokens"], *run.batches(step)["noise"])
        )
        assert (real, first, second) == ({"a", "b"}, {"c", "d"}, {"e", "f"})
    digests = run.config_record["data_sha256"]
    assert sorted(map(len, digests.values())) == [64] * 3
    assert len(set(digests.values())) == 3


def test_a_share_of_one_trains_on_the_second_corpus_alone(config, tmp_path):
    run, states = train(config, tmp_path)
    losses = run.evaluate(states.params)
    by_member = {
        (member["seed"], member["rate"]): next(v for k, v in row.items() if k.endswith("/loss"))
        for member, row in zip(run.members, losses, strict=True)
    }
    assert len(by_member) == 6
    for seed in (0, 7):
        assert by_member[seed, 0.0] < by_member[seed, 0.5] < by_member[seed, 1.0]


def test_a_weight_of_nothing_is_the_real_part_alone(config, tmp_path):
    """Bit for bit what dropped rows are; other weights count."""
    own = config.copy_and_resolve_references()
    own.members.update(dict(seed=(0,), kind=("dropped", "stream"), rate=(0.5,)))
    own.members.noise_weight = (0.0, 1.0, 4.0)
    run, states = train(own, tmp_path)
    [table_MVD] = (np.asarray(x) for x in jax.tree.leaves(states.params) if x.shape[1:2] == (257,))
    found = {
        (member["kind"], member["noise_weight"]): leaf.tobytes()
        for member, leaf in zip(run.members, table_MVD, strict=True)
    }
    assert found["stream", 0.0] == found["dropped", 0.0] == found["dropped", 4.0]
    assert len({found["stream", weight] for weight in (0.0, 1.0, 4.0)}) == 3


def test_at_rate_zero_one_member_is_enough(config):
    own = config.copy_and_resolve_references()
    own.members.update(dict(seed=(0,), rate=(0.0, 0.5), noise_weight=(1.0, 2.0)))
    found = [(m["rate"], m["noise_weight"]) for m in members_of(own)]
    assert found == [(0.0, 1.0), (0.5, 1.0), (0.5, 2.0)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(noise=dict(budget="clean")), "budget=total"),
        (dict(members=dict(kind=("uniform",))), "kind 'stream'"),
        (dict(members=dict(noise_weight=(-1.0,))), "noise_weight"),
        (dict(members=dict(noise_weight=(float("inf"),))), "noise_weight"),
        (dict(members=dict(seed=(3,))), "synthetic/3"),
    ],
)
def test_what_cannot_be_mixed_is_refused(config, changes, words):
    own = config.copy_and_resolve_references()
    own.update(changes)
    with pytest.raises(UserError, match=words):
        build(own)
