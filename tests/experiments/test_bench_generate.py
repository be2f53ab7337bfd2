"""The benchmark of generation: our side at a tiny shape, the agreement of tokens, arithmetic."""

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from loading import load

from lmnoise.errors import UserError
from lmnoise.models.pretrained import read_folder, write_folder
from lmnoise.models.transformer import LanguageModel

BENCH = Path(__file__).parents[2] / "experiments" / "bench"
sys.path.insert(0, str(BENCH))

import bench_report  # noqa: E402
import generate_transformers_worker  # noqa: E402
import generate_worker  # noqa: E402
from protocol import Missing  # noqa: E402

bench = load(BENCH / "generate.py")
TINY = bench.WORK["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, TINY.config, bench.random_weights(TINY.config))
    prompts_BS = np.random.default_rng(1).integers(0, 64, (TINY.batch, TINY.prompt), np.int32)
    prompts_BS.tofile(folder / "prompts")
    return folder


@pytest.fixture(scope="module")
def greedy(folder):
    """Tokens of our worker, (B, N)."""
    worker = generate_worker.Generation(specification(folder, "greedy"))
    mean = worker.advance(2)
    facts = worker.facts
    assert mean == np.mean(facts["tokens"])
    assert facts["parameters"] == LanguageModel(TINY.config).parameter_count
    assert worker.memory() > 0
    return np.array(facts["tokens"])


def specification(folder, method):
    side = bench.Side("lmnoise", "f32", 1, 1, 1, method=method)
    return bench.entry(side, TINY, folder, folder, None).specification


def full_forward(folder, tokens_BN):
    config, params = read_folder(folder)
    whole = np.concatenate([prompts(folder), tokens_BN], 1).astype(np.int32)
    return np.asarray(jax.jit(LanguageModel(config).logits)(params, whole))


def prompts(folder):
    return np.fromfile(folder / "prompts", np.int32).reshape(TINY.batch, TINY.prompt)


def test_greedy_tokens_are_those_of_full_forwards(folder, greedy):
    logits_BTV = full_forward(folder, greedy)
    np.testing.assert_array_equal(logits_BTV[:, TINY.prompt - 1 : -1].argmax(-1), greedy)
    # Not the same token again and again, which any two models would agree on.
    assert len(np.unique(greedy)) > TINY.batch


def test_sampled_batches_are_not_the_same(folder):
    worker = generate_worker.Generation(specification(folder, "sampling"))
    found = []
    for _ in range(2):
        worker.advance(1)
        found.append(np.array(worker.facts["tokens"]))
    assert found[0].shape == (TINY.batch, TINY.new_tokens)
    assert (found[0] != found[1]).any()


def test_a_peer_without_torch_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(generate_transformers_worker, "torch", None)
    with pytest.raises(Missing, match="lacks torch or transformers"):
        generate_transformers_worker.Generation(specification(folder, "greedy"))


def result(kind, method, seconds, threads=0, tokens=None, parameters=21):
    side = bench.Side(kind, "f32", 1, 1, 1, method=method, threads=threads)
    facts = {"parameters": parameters, "device": "cpu", "versions": {"peer torch": "2"}}
    facts["tokens"] = None if tokens is None else tokens.tolist()
    worker = SimpleNamespace(facts=facts, memory=2**20, compile=1.0, first_step=9.0)
    turns = [{"seconds": s, "cpu": 2 * s, "others": 0.0, "loss": 31.5} for s in seconds]
    return bench_report.Result(side, worker, 1, None, 2**20, turns)


def agreement(folder, ours, theirs, **changes):
    results = [
        result("lmnoise", "greedy", [1.0], tokens=ours),
        result("dynamic", "greedy", [2.0], 1, tokens=theirs, **changes),
    ]
    return bench.check_agreement("tiny", results, prompts(folder), folder)


def test_greedy_tokens_that_agree_or_do_not(folder, greedy, monkeypatch):
    assert agreement(folder, greedy, greedy) == bench.Agreement(TINY.batch, 0, 0.0)
    other = greedy.copy()
    other[1, 3:] = (other[1, 3:] + 1) % 64
    with pytest.raises(UserError, match="at tiny greedy tokens differ where their logits do by"):
        agreement(folder, greedy, other)
    with pytest.raises(UserError, match="21 and 22 parameters"):
        agreement(folder, greedy, greedy, parameters=22)
    # What is near enough is by the logits after the tokens before, in which both agree.
    logits_V = full_forward(folder, greedy)[1, TINY.prompt + 2]
    gap = logits_V[greedy[1, 3]] - logits_V[other[1, 3]]
    monkeypatch.setattr(bench, "NEAR", 1.01 * gap)
    found = agreement(folder, greedy, other)
    assert (found.rows, found.differ) == (TINY.batch, 1)
    assert found.gap == pytest.approx(gap, rel=1e-3)


def measured():
    results = [
        result("lmnoise", "greedy", [1.0, 10.0]),
        result("dynamic", "greedy", [5.0, 30.0], threads=1),
        result("dynamic", "greedy", [9.0, 80.0], threads=2),
        result("lmnoise", "sampling", [1.0, 30.0]),
        result("dynamic", "sampling", [15.0, 90.0], threads=1),
    ]
    return {"tiny": (TINY, results)}


def test_ratios_are_of_the_same_round_and_method():
    table = bench.speed_table("tiny", *measured()["tiny"])
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    ratios = [row["times the seconds of lmnoise"].split()[0] for row in rows]
    assert ratios == ["1.0", "4.0", "8.5", "1.0", "9.0"]
    assert rows[0]["tokens/s"] == "18 (3 to 32)"  # 4 rows of 8 tokens
    assert rows[0]["core-us a token"] == f"{11e6 / 32:.1f}"
    (sentence,) = bench.verdict(measured())
    assert "tiny, greedy: 4.0 (transformers, threads: 1); tiny, sampling: 9.0 (" in sentence
    assert bench.verdict({"tiny": (TINY, [result("lmnoise", "greedy", [1.0])])}) == []


def test_the_report(tmp_path):
    agreements = {"tiny": bench.Agreement(8, 1, 2e-5)}
    bench.write(tmp_path, measured(), agreements, ["The peer was left out."], {"rounds": 2})
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "The peer was left out." in text
    assert "tiny: 1 of 8 rows part from ours, where logits differ by 2.0e-05 at most" in text
    with (tmp_path / "rounds.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10
    assert (tmp_path / "tiny-speed.csv").is_file()


def test_sides_in_turn():
    sides = bench.contenders(["greedy", "sampling"], 3, ["dynamic", "compiled"], [1, 2])
    assert [side.name for side in sides[:3]] == [
        "lmnoise",
        "transformers, threads: 1",
        "transformers, threads: 2",
    ]
    assert [side.method for side in sides] == ["greedy"] * 5 + ["sampling"] * 5
    assert {side.steps for side in sides} == {3}
    assert len(bench.contenders(["greedy"], 3, ["dynamic"], [])) == 1


FLAGS = dict(
    shapes=["tiny"], methods=["greedy"], caches=["static"], threads=["1"], peer_python=None
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shapes": ["huge"]}, "--shapes: name some of tiny, small"),
        ({"methods": []}, "--methods: name some of greedy, sampling"),
        ({"caches": ["none"]}, "--caches: name some of dynamic, static, compiled"),
        ({"threads": ["0"]}, "--threads: name numbers from 1 up, not 0"),
        ({"peer_python": "/no/python"}, "/no/python is no program"),
    ],
)
def test_flags_that_do_not_fit(changes, sentence):
    bench.check(SimpleNamespace(**FLAGS))
    with pytest.raises(UserError, match=re.escape(sentence)):
        bench.check(SimpleNamespace(**(FLAGS | changes)))
