"""Mixtures of two corpora and the report of what a share costs, on corpora of invented words."""

import csv
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loading import load
from scipy.stats import sem
from scipy.stats import t as student

from lmnoise.analyze import laws, mixtures, synthetic, synthetic_report
from lmnoise.analyze.mixtures import Curves, quality, train_mixtures, train_weighted
from lmnoise.assemble import dry_run, members_of
from lmnoise.config import default_config
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation.powerlaw import PowerLaw, bootstrap
from lmnoise.report import Estimate

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")
CONFIG = load(ROOT / "configs" / "synthetic.py")


@pytest.fixture
def config(corpora):
    """Of the smallest mixtures; each seed has a synthetic corpus of its own."""
    config = CONFIG.get_config("tiny")
    config.update(CONFIG.SMALL)
    for seed, name in enumerate(("second", "third")):
        link = corpora / f"of-{seed}"
        if not link.exists():
            link.symlink_to(corpora / name, target_is_directory=True)
    config.data.update(dict(data_dir=str(corpora / "data"), source=f"{corpora}/first/"))
    config.noise.source = f"{corpora}/of-{{seed}}/"
    return config


def own(config, **members):
    """The part of it that trains."""
    found = default_config()
    found.update({name: config[name].to_dict() for name in found})
    found.members.update(members)
    return found


def planted(shares=(0.0, 0.01, 0.1, 0.5, 1.0), spread=1e-4):
    """Curves of power laws whose floors rise by 0.01, 0.1, 0.5 and 1 nats, with seeds' noise."""
    tokens_B = 2.0 ** np.arange(16, 21)
    floors_P = 2 + np.array(shares)
    law = PowerLaw(np.full(len(shares), 2 * tokens_B[0] ** 0.3), np.full(len(shares), 0.3),
                   floors_P, floors_P)  # fmt: skip
    noise_PRB = np.random.default_rng(0).normal(0, spread, (len(shares), 3, 5))
    return Curves(
        shares=shares,
        tokens_B=tokens_B,
        seeds=(0, 1, 2),
        real_PRB=law(tokens_B)[:, None] + noise_PRB,
        synthetic_PRB=3 + noise_PRB,
        parameters=1000,
        real_tokens=10**7,
        synthetic_tokens=2**19,
    )


def test_losses_are_those_of_their_members(config, tmp_path, monkeypatch):
    """With a training that only says which member and text each loss is of."""
    config = own(config, noise_weight=(0.0, 1.0), duration=(1.0, 0.25, 0.5))
    real, texts = config.data.source, [config.noise.source.replace("{seed}", s) for s in "01"]

    def loss_of(member, name):
        parts = [member[key] for key in ("rate", "noise_weight", "seed", "duration")]
        return float(np.dot(parts, (1e6, 1e4, 1e2, 1)) + 1e-3 * [real, *texts].index(name))

    def train(config, workdir, title):
        assert config.data.evaluate == (real, *texts)
        members = members_of(config)
        final = [
            {"member": m, "step": 16}
            | {f"eval/{name.strip('/')}/loss": loss_of(member, name) for name in [real, *texts]}
            for m, member in enumerate(members)
        ]
        rows = [{"member": 0, "step": 16, "loss": 1.0}, *final[::-1]]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SimpleNamespace(members=members, model=SimpleNamespace(parameter_count=7)), "states"

    monkeypatch.setattr(mixtures, "train", train)
    found = train_weighted(config, tmp_path, "mixtures")
    assert list(found) == [0.0, 1.0]
    for weight, curves in found.items():
        assert curves.tokens_B.tolist() == [4 * 8 * 16, 8 * 8 * 16, 16 * 8 * 16]
        for (p, share), seed, (b, part) in itertools.product(
            enumerate((0.0, 0.5, 1.0)), (0, 1), enumerate((0.25, 0.5, 1.0))
        ):
            # Without synthetic rows all weights are the first.
            own_weight = weight if share else 0.0
            member = dict(rate=share, noise_weight=own_weight, seed=seed, duration=part)
            assert curves.real_PRB[p, seed, b] == loss_of(member, real)
            assert curves.synthetic_PRB[p, seed, b] == loss_of(member, texts[seed])
    monkeypatch.setattr(mixtures, "train", lambda *_: (None, None))
    with pytest.raises(Stopped):
        train_weighted(config, tmp_path, "mixtures")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"rate": (0.5, 1.0)}, "config.members.rate must hold 0"),
        ({"seed": (3,)}, "at least 2 seeds"),
        ({"kind": ("uniform",)}, "config.members.kind"),
        ({"learning_rate": (1e-3, 1e-2)}, "config.members.learning_rate must hold one"),
        ({"noise_weight": (0.0, 1.0)}, "must hold one weight"),
        ({"duration": (0.5, 0.51, 1.0)}, "are the same number of steps of config.train.steps=16"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(members, words, config, tmp_path):
    with pytest.raises(UserError, match=words):
        train_mixtures(own(config, **members), tmp_path, "mixtures")
    assert not list(tmp_path.iterdir())


def test_the_real_part_is_read_from_the_real_curve():
    curves = planted(spread=0.0)
    part_PRB = curves.real_part_PRB
    assert (part_PRB[0] == curves.real_PRB[0]).all()
    # Half the tokens are a size that was measured; less than the smallest is not known.
    assert part_PRB[3, :, 1:] == pytest.approx(curves.real_PRB[0, :, :-1], abs=1e-12)
    assert np.isnan(part_PRB[3, :, 0]).all()
    assert np.isnan(part_PRB[4]).all()
    exact_B = 2 * (0.9 * curves.tokens_B / curves.tokens_B[0]) ** -0.3 + 2
    assert part_PRB[2, 0, 1:] == pytest.approx(exact_B[1:], abs=3e-3)
    # Rounded logarithms put half of the second size below the first.
    rounded = dataclasses.replace(curves, tokens_B=3 * 2.0 ** np.arange(5)).real_part_PRB
    assert rounded[3, :, 1] == pytest.approx(curves.real_PRB[0, :, 0])
    assert curves.added_PRB[3, 0, -1] == pytest.approx(0.5 - 2 * 16**-0.3 * (2**0.3 - 1))


def test_quality_is_students_interval_of_paired_differences():
    curves = planted(spread=0.1)
    found, excess_R = quality(curves), curves.real_PRB[-1, :, -1] - curves.real_PRB[0, :, -1]
    low, high = student.interval(0.95, 2, excess_R.mean(), excess_R.std(ddof=1) / np.sqrt(3))
    assert found.interval == pytest.approx((low, high))
    with pytest.raises(ValueError, match="end with 1"):
        quality(dataclasses.replace(curves, shares=(0.0, 0.01, 0.1, 0.5, 0.9)))


def test_the_chance_error_of_losses():
    curves = planted(spread=0.1)
    assert curves.chance**2 == pytest.approx(np.mean(np.square(sem(curves.real_PRB, axis=1))))


def test_ends_of_the_range_of_a_fit():
    ones = np.ones(3)
    law = PowerLaw(ones, np.array([0.3, 3.0, 0.3]), np.array([1.0, 1.0, 0.0]), ones)
    assert laws.at_end(law) == ["", "exponent", "floor"]


def test_whether_the_law_holds():
    curves = planted()
    options = dict(draws=20, seed=0)

    def sentence(curves):
        free = bootstrap(curves.tokens_B, curves.real_PRB, **options)
        shared = bootstrap(curves.tokens_B, curves.real_PRB, shared_exponent=True, **options)
        return synthetic_report._floor_sentence(curves, free, shared)

    assert "With an exponent for each share the law misses losses by 0.000 nats" in sentence(curves)
    stairs_B = 0.1 * (np.arange(5) % 2)
    bent = dataclasses.replace(curves, real_PRB=curves.real_PRB + stairs_B)
    assert "The law does not hold in these sizes" in sentence(bent)
    short = dict(tokens_B=curves.tokens_B[:3], real_PRB=curves.real_PRB[..., :3])
    assert "Three sizes cannot tell" in sentence(dataclasses.replace(curves, **short))


def test_shares_that_are_too_dear_and_those_not_decided():
    found = {0.1: Estimate(1.0, 0.1, 3), 0.2: Estimate(6.0, 1.0, 3), 0.5: Estimate(9.0, 0.1, 3)}
    assert synthetic_report._extra(found, 5.0).startswith(
        "Shown to cost more: share 0.5. Not decided: share 0.2 (more of"
    )


def test_the_largest_share_below_a_cost():
    found = {0.1: Estimate(1.0, 0.1, 3), 0.2: Estimate(2.0, 1.0, 3), 0.5: Estimate(1.0, 0.1, 3)}
    assert synthetic_report.largest_below(found, 5.0) == 0.1  # that of 0.2 reaches 6.3
    assert synthetic_report.largest_below(found, 7.0) == 0.5
    assert synthetic_report.largest_below(found, 1.0) is None


@pytest.mark.parametrize(
    ("cost", "in_place"),
    [
        (5.0, "every share up to 0.1 is shown to cost less than 5 % (there 3."),
        (0.1, "not even the smallest share, 0.01, is shown to cost less than 0.1 % (there 0.3"),
        (99.0, "every share up to 1 is shown to cost less than 99 %"),
    ],
)
def test_the_answers(cost, in_place, tmp_path):
    config = CONFIG.get_config("tiny")
    blocks = synthetic_report.blocks(planted(), config, cost, tmp_path)
    text = "\n".join(block for block in blocks if isinstance(block, str))
    assert f"In place of real text, at 1,048,576 tokens in all: {in_place}" in text
    # At half of the tokens real text alone is 0.2 nats behind, synthetic text costs 0.5.
    assert "to help at no share and to harm at share 0.01, 0.1, 0.5." in text
    assert "1.000 ± 0.000 nats above" in text
    assert "2.0 times the synthetic corpus" in text
    table = (tmp_path / "fits.csv").read_text().splitlines()
    assert len(table) == 1 + 5


@pytest.mark.parametrize("preset", CONFIG.PRESETS)
def test_every_preset_can_be_trained(preset, config, tmp_path, monkeypatch):
    whole = CONFIG.get_config(preset)
    for key in ("data_dir", "source", "tokenizer"):
        whole.data[key] = config.data[key]
    whole.noise.source = config.noise.source.replace("{seed}", "0")
    given = []
    monkeypatch.setattr(mixtures, "train", lambda own, *_: given.append(own) or (None, None))
    with pytest.raises(Stopped):
        synthetic.run(whole, tmp_path, tmp_path / "report", 5.0, "the command")
    plan = dry_run(given[0], devices=1, chip=None, mfu=0.5)
    # Shares x seeds x sizes, of which one share has no synthetic text.
    assert plan.members == 7 * 3 * 4


def test_the_report_and_that_the_command_goes_on(config, tmp_path):
    report = synthetic.run(config, tmp_path, tmp_path / "report", 5.0, "the command")
    text = report.read_text()
    assert "Made by `the command`." in text
    assert set(re.findall(r"\]\(<(\S+\.png)>\)", text)) == {"costs.png"}
    assert (tmp_path / "report" / "costs.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "report" / "curves.csv").open()))
    assert len(rows) == 3 * 2 * 3
    # Models of their own text alone know it better, and real text worse.
    real, last = (
        [r for r in rows if r["share"] == s and r["tokens"] == "2048"] for s in ("0.0", "1.0")
    )
    for name, sign in (("loss on real text", 1), ("loss on synthetic text", -1)):
        assert all(
            sign * (float(b[name]) - float(a[name])) > 0 for a, b in zip(real, last, strict=True)
        )
    the_command_goes_on(config, tmp_path, text)


def the_command_goes_on(config, workdir, text):
    """The command, from another folder, trains nothing again and comes to the same report."""
    changes = {
        f"{s}.{key}": value for s, keys in CONFIG.SMALL.items() for key, value in keys.items()
    }
    changes["data.data_dir"] = config.data.data_dir
    command = [
        sys.executable, "-m", "lmnoise.analyze", "synthetic", f"--real={config.data.source}",
        f"--synthetic={config.noise.source}", "--size=tiny", f"--workdir={workdir}", "--cost=10",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]  # fmt: skip
    before = (workdir / "metrics.jsonl").read_bytes()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=workdir, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"report: {workdir / 'report' / 'report.md'}" in done.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before
    again = (workdir / "report" / "report.md").read_text()
    assert "less than 10 %" in again
    tables = [part.split("## How this")[0].split("| share |")[1:] for part in (text, again)]
    assert tables[0] == tables[1] != []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size=huge"], "choose one of tiny, small, gpu"),
        ([], "give either one --size of tiny, small, gpu"),
        (["--size=tiny", "--config=configs/synthetic.py:tiny"], "give either one --size"),
    ],
)
def test_sizes_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        synthetic.main(arguments)


def test_axes_that_cannot_answer_are_refused(config, tmp_path):
    config.members.rate = (0.0, 0.5)
    with pytest.raises(UserError, match=r"config\.members\.rate must hold 0, 1"):
        synthetic.run(config, tmp_path, tmp_path, 5.0, "the command")
    config.members.update(dict(rate=(0.0, 0.5, 1.0), duration=(0.5, 1.0)))
    with pytest.raises(UserError, match="at least 3 sizes"):
        synthetic.run(config, tmp_path, tmp_path, 5.0, "the command")
