"""The benchmark end to end at a tiny shape, its protocol against small workers, its arithmetic."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"
sys.path.insert(0, str(BENCH))

import bench_report  # noqa: E402
import contenders  # noqa: E402
import lmnoise_worker  # noqa: E402
import nanodo_worker  # noqa: E402
import protocol  # noqa: E402
import targets  # noqa: E402
import turns  # noqa: E402

from lmnoise.errors import UserError  # noqa: E402

_spec = importlib.util.spec_from_file_location("bench_train", BENCH / "train.py")
bench_train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench_train)


def bench(*arguments, expect=0):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, str(BENCH / "train.py"), "--shapes=tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == expect, done.stderr
    return done


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_end_to_end(tmp_path):
    """With a peer whose interpreter lacks torch."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = bench(
        "--rounds=2",
        "--members=2",
        "--turn_seconds=0.05",
        f"--out={tmp_path}",
        f"--peer_python={bare}",
        f"--peer_model={BENCH / 'nanogpt_worker.py'}",
        "--contenders=product-f32,run-f32,population-f32,nanogpt-f32",
        "--variants=dispatch=1,layers_as=scan",
    )
    assert "nanoGPT (PyTorch) with f32 left out: its interpreter" in done.stderr
    speed = rows_of(tmp_path / "tiny-speed.csv")
    assert [(row["contender"], row["steps a dispatch"]) for row in speed] == [
        ("matrix product (XLA)", ""),
        ("lmnoise, one run", "2"),
        ("lmnoise, 2 members", "2"),
        ("lmnoise, one run, dispatch=1,layers_as=scan", "1"),
    ]
    for row in speed[1:]:
        assert "the product in f32" in row["peak"]
        assert float(row["core-ms a step"]) > 0
        assert float(row["first step of a second start, s"]) > 0
    assert speed[1]["times the reference"] == "1.00 (1.00 to 1.00)"
    rounds = rows_of(tmp_path / "rounds.csv")
    assert [int(row["round"]) for row in rounds] == [0, 1] * 4
    for row in rounds[2:]:
        members = 2 if "members" in row["contender"] else 1
        tokens = int(row["steps"]) * members * 4 * 16
        assert float(row["tokens/s"]) == pytest.approx(tokens / float(row["seconds"]))
        # Of uniform tokens the loss stays near log 65.
        assert float(row["last loss"]) == pytest.approx(4.17, abs=0.2)
    (lever,) = rows_of(tmp_path / "tiny-levers.csv")
    assert lever["variant"] == "dispatch=1,layers_as=scan"
    (population,) = rows_of(tmp_path / "tiny-population.csv")
    assert population["members"] == "2"
    report = (tmp_path / "report.md").read_text()
    assert "| lmnoise, 2 members | f32 |" in report
    assert "lacks torch." in report
    assert "| twice nanodo | H100-class GPU | gpt2 | bf16 |  | not measured |" in report


FLAGS = dict(
    shapes=["tiny"], contenders=[], batch=0, peer_python=None, peer_model=None, nanodo=None
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shapes": ["huge"]}, "--shapes: 'huge' is not one of tiny, small, large"),
        ({"contenders": ["run"]}, "--contenders: 'run' is not one of product-f32"),
        ({"contenders": ["nanogpt-f32"]}, "needs --peer_python and --peer_model"),
        ({"contenders": ["nanodo-f32"]}, "nanodo, which needs --nanodo"),
        ({"nanodo": "/no"}, "/no holds no nanodo/model.py"),
        ({"peer_model": "model.py"}, "--peer_python and --peer_model go together"),
        ({"peer_python": "/no/python", "peer_model": "x"}, "/no/python is no program"),
        ({"peer_python": "/", "peer_model": "x"}, "/ is no program"),
        ({"peer_python": sys.executable, "peer_model": "no.py"}, "there is no file no.py"),
    ],
)
def test_flags_that_do_not_fit(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        bench_train.check(SimpleNamespace(**(FLAGS | changes)))


def test_shapes_follow_the_device():
    def names(on_cpu, **changes):
        return list(bench_train.choose_shapes(SimpleNamespace(**(FLAGS | changes)), on_cpu))

    assert names(True, shapes=[]) == ["small", "large", "population10m"]
    assert names(False, shapes=[]) == ["gpt2", "population10m"]
    with pytest.raises(UserError, match="a step of gpt2 takes minutes on a CPU"):
        names(True, shapes=["tiny", "gpt2"])
    values = SimpleNamespace(**(FLAGS | {"shapes": ["gpt2"], "batch": 1}))
    assert bench_train.choose_shapes(values, on_cpu=True)["gpt2"].batch == 1


def test_the_shapes_are_of_the_sizes_in_their_names():
    """FLOPs by hand: 6 a parameter but the positions, and 12 L D S."""
    shape = contenders.SHAPES["gpt2"]
    matrices = 12 * 12 * 768**2 + 50304 * 768
    scales = 25 * 768
    assert matrices == pytest.approx(124e6, rel=0.01)
    assert shape.flops_per_token == 6 * (matrices + scales) + 12 * 12 * 768 * 1024
    # The target: 519,000 tokens/s are 45 % of 989 TFLOP/s.
    assert 519e3 * shape.flops_per_token / 989e12 == pytest.approx(0.45, abs=0.002)
    small = contenders.SHAPES["population10m"]
    assert small.flops_per_token / 6 == pytest.approx(10e6, rel=0.1)


def plan(shape="tiny", **changes):
    flags = dict(members=3, on_cpu=True, variants={}) | changes
    return contenders.contenders(contenders.SHAPES[shape], **flags)


def test_contenders():
    names = [f"{c.kind}-{c.operands}" for c in plan()]
    kinds = ("product", "run", "population", "nanogpt", "nanogpt-compile", "nanodo")
    assert names == [f"{kind}-{operands}" for kind in kinds for operands in ("f32", "bf16")]
    assert {c.kind for c in plan("population10m")} == {"product", "run", "population"}
    assert {c.operands for c in plan("gpt2")} == {"bf16"}
    assert [c.members for c in plan(named=["population-bf16", "nanodo-f32"])] == [3, 1]
    assert not any(c.kind == "nanodo" for c in plan(without=["nanodo"]))
    # The library's default on an accelerator, where steps are short.
    assert [c.dispatch for c in plan(named=["run-f32"], on_cpu=False)] == [10]


def test_variants():
    text = "layers_as=scan; model.remat=full,optimizer.b1=0.8 ;dispatch=5"
    variants = contenders.parse_variants(text)
    assert variants == {
        "layers_as=scan": {"model": {"layers_as": "scan"}},
        "model.remat=full,optimizer.b1=0.8": {"model": {"remat": "full"}, "optimizer": {"b1": 0.8}},
        "dispatch=5": {"dispatch": 5},
    }
    planned = plan(named=["run-f32", "run-bf16"], variants=variants)
    assert [(c.variant, c.operands) for c in planned[-2:]] == [
        ("dispatch=5", "f32"),
        ("dispatch=5", "bf16"),
    ]
    assert [c.dispatch for c in planned] == [2, 2, 2, 2, 2, 2, 5, 5]
    with pytest.raises(UserError, match="add run-f32 to --contenders"):
        plan(named=["product-f32"], variants=variants)


@pytest.mark.parametrize("text", ["layers_as", "nothing=1", "optimizer.remat=True", "dispatch=0"])
def test_variants_that_do_not_exist(text):
    with pytest.raises(UserError, match="--variants"):
        contenders.parse_variants(text)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("--rounds=0", "rounds"), ("--rouns=1", "rouns"), ("tiny", "--name=value")],
)
def test_a_command_line_that_cannot_be_read(argument, sentence):
    error = bench(argument, expect=2).stderr.strip()
    assert error.startswith("error: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


WORKER = """
import sys
sys.path.insert(0, {bench!r})
import protocol

class Contender:
    facts = {{"parameters": 3}}
    def __init__(self, spec):
        print("a model that talks")
        self.steps = 0
        {build}
    def advance(self, steps):
        self.steps += steps
        return float(self.steps)
    def memory(self):
        return protocol.resident_peak()

protocol.serve(Contender)
"""


@pytest.mark.parametrize(
    ("part", "settings", "sentence"),
    [
        ("model", {"attention": "splash"}, "attention 'splash' runs on tpu"),
        ("optimizer", {"schedule": "none"}, "schedule must be one of"),
    ],
)
def test_a_variant_that_cannot_run_is_left_out(part, settings, sentence):
    shape = dataclasses.asdict(contenders.SHAPES["tiny"])
    specification = {"shape": shape, "dtype": "float32", "model": {}, "optimizer": {}, "members": 1}
    with pytest.raises(protocol.Missing, match=sentence):
        lmnoise_worker.Training(specification | {part: settings})


def script_of(tmp_path, build="pass"):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bench=str(BENCH), build=build))
    return script


def worker(tmp_path, build="pass"):
    script = script_of(tmp_path, build)
    return protocol.Worker([sys.executable, "-S", str(script)], {"dispatch": 2}, {})


def test_protocol(tmp_path):
    started = worker(tmp_path)
    assert started.facts == {"parameters": 3}
    assert started.first_step > started.compile >= 0
    # Three dispatches of two steps come first.
    assert [started.run(5)["loss"], started.run(1)["loss"]] == [11.0, 12.0]
    assert 2**20 < started.memory < 2**30
    started.close()


@pytest.mark.parametrize(
    ("build", "kind", "sentence"),
    [
        ("raise protocol.Missing('no torch')", protocol.Missing, "no torch"),
        ("raise protocol.Refused('no GPT')", protocol.Refused, "no GPT"),
        ("raise ValueError('a bug')", protocol.Refused, "(?s)a model that talks.*a bug"),
        ("sys.exit()", protocol.Refused, "instead of an answer"),
    ],
)
def test_a_worker_that_cannot_take_part(tmp_path, build, kind, sentence):
    with pytest.raises(kind, match=sentence) as raised:
        worker(tmp_path, build)
    assert raised.type is kind


def test_a_program_that_is_no_worker():
    with pytest.raises(protocol.Refused, match="does not start"):
        protocol.Worker(["/no/program"], {}, {})
    with pytest.raises(protocol.Refused, match="said\nhello"):
        protocol.Worker(["echo", "hello"], {}, {})


@pytest.mark.parametrize("alone", [False, True])
def test_turns(tmp_path, alone):
    """A process that ends with its turn starts again from its first step."""
    entry = turns.Entry(
        contenders.Contender("nanogpt", "f32", 1, 2, steps=4),
        str(script_of(tmp_path)),
        {"dispatch": 2},
        sys.executable,
        tmp_path / "cache",
    )
    (measured,), left_out = turns.measure([entry], rounds=2, title="test", alone=alone)
    assert measured.of("loss").tolist() == ([10.0, 10.0] if alone else [10.0, 14.0])
    assert measured.second_start > 0
    assert measured.memory > 2**20
    assert left_out == []


def test_a_turn_lasts_as_long_as_it_is_told(tmp_path):
    script = script_of(tmp_path, "import time; self.advance = lambda n: time.sleep(n / 100) or 0.0")
    entry = turns.Entry(contenders.Contender("nanogpt", "f32", 1, 2), str(script), {"dispatch": 2})
    (measured,), _ = turns.measure([entry], rounds=1, title="test", turn_seconds=0.1)
    assert 6 <= measured.steps <= 10
    assert measured.second_start is None


NANODO = {
    "train.py": """
import types
import sentencepiece
from clu import metric_writers
import jax
import jax.numpy as jnp

def _init_train_state(c, module, rng, mesh):
    return None, types.SimpleNamespace(params={"w": jnp.zeros(c.model.D)})

class Trainer:
    def __init__(self, c, state, mesh, shardings, get_loss_fn):
        self.state, self.count, self.length = types.SimpleNamespace(), 0, c.model.L
    def do_step(self, step, tokens):
        assert (step, tokens.shape) == (self.count, (2, self.length))
        self.count += 1
        return {"train_loss": jnp.float32(self.count)}
""",
    "model_factory.py": "get_model_and_loss = lambda c, vocab_size: (vocab_size, None)",
    "model.py": "",
    "__init__.py": "",
}


def nanodo_specification(tmp_path):
    np.arange(3 * 2 * 6, dtype=np.int32).tofile(tmp_path / "tokens")
    return {
        "shape": dict(vocab_size=65, width=8, heads=2, layers=1, length=5, batch=2),
        "source": str(tmp_path),
        "dtype": "bfloat16",
        "learning_rate": 1e-3,
        "tokens": str(tmp_path / "tokens"),
    }


def test_nanodo(tmp_path, monkeypatch):
    """The worker against a copy's interface; corpora and loggers need not be installed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in nanodo_worker.NOT_RUN:
        monkeypatch.setitem(sys.modules, name, None)
    specification = nanodo_specification(tmp_path)
    with pytest.raises(protocol.Refused, match="is no nanodo that runs here"):
        nanodo_worker.Nanodo(specification)
    (tmp_path / "nanodo").mkdir()
    for name, text in NANODO.items():
        (tmp_path / "nanodo" / name).write_text(text)
    importlib.invalidate_caches()
    contender = nanodo_worker.Nanodo(specification)
    assert [contender.advance(2), contender.advance(3)] == [2.0, 5.0]
    assert contender.facts["parameters"] == 8
    assert contender.memory() > 2**20
    for name in [name for name in sys.modules if name.split(".")[0] == "nanodo"]:
        del sys.modules[name]


def result(kind, members, steps, seconds, operands="f32", **facts):
    contender = contenders.Contender(kind, operands, members, 1, steps)
    facts = {"parameters": 10, "device": "chip", "versions": {}} | facts
    done = SimpleNamespace(facts=facts, memory=2**20, compile=1.0, first_step=2.0, idle_cpu=0.0)
    turns = [{"seconds": s, "cpu": s, "others": s / 2, "loss": 4.0} for s in seconds]
    return bench_report.Result(contender, done, steps, memory=2**20, turns=turns)


SHAPE = contenders.Shape(layers=1, width=8, heads=1, length=5, batch=2, dispatch=1)


def table_rows(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_ratios_are_of_the_same_round():
    """30 tokens a second of two members against 10, with the machine at half speed in round 2."""
    ours = result("population", 2, 3, [2.0, 4.0, 1.0])
    one = result("run", 1, 1, [1.0, 2.0, 1.0])
    rate = 10 * SHAPE.flops_per_token
    product = result("product", 0, 5, [1.0, 1.0, 1.0], flops_per_step=rate)
    every = [product, ours, one]
    rows = table_rows(bench_report.speed_table(SHAPE, every, "test"))
    ratios = [row["times the reference"] for row in rows]
    assert ratios == ["", "3.00 (3.00 to 6.00)", "1.00 (1.00 to 1.00)"]
    rates = [row["tokens/s"] for row in rows]
    assert rates == ["", "30 (15 to 60)", "10 (5 to 10)"]
    assert [row["of the peak"] for row in rows] == ["100.0%", "60.0%", "20.0%"]
    (row,) = table_rows(bench_report.population_table(SHAPE, every, "test"))
    assert row["times the runs one after the other"] == "3.00 (3.00 to 6.00)"
    assert bench_report.levers_table(SHAPE, every, "test") is None


def test_the_data_sheet_is_the_peak_where_there_is_one():
    """A peer does not know it, and is held against it all the same."""
    ours = result("run", 1, 1, [1.0], peak_flops=20 * SHAPE.flops_per_token)
    peer = result("nanogpt", 1, 2, [1.0])
    rows = table_rows(bench_report.speed_table(SHAPE, [peer, ours], "test"))
    assert [row["of the peak"] for row in rows] == ["100.0%", "50.0%"]
    assert "data sheet" in rows[0]["peak"]
    (unknown,) = bench_report.speed_table(SHAPE, [peer], "test").rows
    assert unknown.count("unknown") == 2


def verdicts(cores=100, rows=None, **measured):
    at = {n: dataclasses.replace(SHAPE, batch=rows or contenders.SHAPES[n].batch) for n in measured}
    measured = {name: (at[name], results) for name, results in measured.items()}
    rows = table_rows(targets.targets_table(measured, cores))
    return {(r["target"], r["shape"]): r["verdict"] for r in rows if r["measured"]}


def test_targets():
    """Against the faster of PyTorch's two; only on the machine that a target names."""
    ours = [result("run", 1, 3, [1.0, 1.0], o, device="cpu") for o in ("f32", "bf16")]
    slow, fast = (
        [result(kind, 1, steps, [1.0, 1.0], o) for o in ("f32", "bf16")]
        for kind, steps in (("nanogpt", 2), ("nanogpt-compile", 4))
    )
    assert verdicts(small=[*ours, *slow, *fast]) == {
        ("ahead of PyTorch in f32", "small"): "not met",
        ("within 1.5 times of PyTorch in bf16", "small"): "met",
    }
    assert verdicts(large=[*ours, *slow])[("ahead of PyTorch in f32", "large")] == "met"
    gpu = [result("run", 1, 60_000, [1.0], "bf16", device="NVIDIA H100 80GB HBM3")]
    gpu += [result("nanodo", 1, 40_000, [1.0], "bf16", device="NVIDIA H100 80GB HBM3")]
    assert verdicts(gpt2=gpu) == {
        ("45 % of 989 TFLOP/s: 519,000 tokens/s", "gpt2"): "met",
        ("twice nanodo", "gpt2"): "not met",
    }
    population = [result("population", 8, 1, [1.0], "bf16", device="cpu"), ours[1]]
    assert set(verdicts(population10m=population).values()) == {
        "not measured on its machine, but on cpu"
    }


def test_a_target_is_for_its_own_rows_and_members_on_a_quiet_machine():
    gpu = {"device": "NVIDIA H100 80GB HBM3"}
    one = result("run", 1, 60_000, [1.0], "bf16", **gpu)
    assert set(verdicts(gpt2=[one]).values()) == {"met"}
    assert set(verdicts(gpt2=[one], rows=1).values()) == {"not measured with its 16 rows"}
    assert set(verdicts(gpt2=[one], cores=2).values()) == {"not measured on a quiet machine"}
    many = [result("population", 16, 60_000, [1.0], "bf16", **gpu), one]
    assert set(verdicts(population10m=many).values()) == {"not measured with 8 members"}


def test_crowding_is_a_share_of_all_cores():
    results = [result("run", 1, 1, [1.0, 3.0]), result("nanogpt", 1, 1, [4.0])]
    assert bench_report.crowding(results, cores=2) == 0.25


def test_another_model_is_no_peer():
    ours = result("run", 1, 1, [1.0])
    peer = result("nanogpt", 1, 1, [1.0], parameters=11)
    with pytest.raises(UserError, match="10 and 11 parameters"):
        bench_report.check_same_model({"test": (SHAPE, [ours, peer])})


def test_messages_are_json(tmp_path):
    """What the worker prints itself goes to its log, not between the answers."""
    script = script_of(tmp_path)
    lines = f"{json.dumps({'dispatch': 1})}\n{json.dumps({'steps': 1})}\n"
    done = subprocess.run(
        [sys.executable, str(script)], input=lines, capture_output=True, text=True
    )
    assert [sorted(json.loads(line)) for line in done.stdout.splitlines()] == [
        ["first"],
        ["compile", "facts", "memory", "warm"],
        ["cpu", "idle_cpu", "loss", "memory", "seconds"],
    ]
    assert "a model that talks" in done.stderr
