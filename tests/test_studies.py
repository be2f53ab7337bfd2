"""Every preset of every config is run, made small, by the program that its docstring names.

Presets of language models take two steps, and their studies have report tests of their own here.
Programs that analyse checkpoints are run by tests/analyze, the synthesis of text by
tests/test_synthesize.py, the studies of fine-tuning, heads and synthetic text by tests/experiments.
Every other program is a theory study, `experiments/X.py` with
`run(config, workdir, folder, command) -> Path` (the report), and its config file has `SMALL`, the
changes that make the whole study run in seconds.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from loading import load
from ml_collections import ConfigDict

from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.report import provenance
from lmnoise.train import train
from lmnoise.training.metrics import read_rows

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")
sys.path.insert(0, str(ROOT / "experiments"))


def program(module):
    """What the command in the docstring of a config file runs with that file."""
    name = Path(module.__file__).name
    [found] = set(re.findall(rf"python (?:-m )?(\S+) .*--config=configs/{name}", module.__doc__))
    return found


CONFIGS = {path.stem: load(path) for path in sorted((ROOT / "configs").glob("*.py"))}
NAMES = ("first", "second", "third")
LANGUAGE_MODELS = ("lmnoise.train", "experiments/noise.py")
ANALYSES = ("lmnoise.analyze", "experiments/regions.py")
SYNTHESIS = ("lmnoise.synthesize",)
PRESETS = [(stem, preset) for stem, module in CONFIGS.items() for preset in module.PRESETS]
LANGUAGE = [(s, preset) for s, preset in PRESETS if program(CONFIGS[s]) in LANGUAGE_MODELS]
OF_MODELS = ("overtraining", "memorization", "multilingual", "lgm", "collapse_lm")
FINE_TUNING = tuple(f"experiments/{study}.py" for study in OF_MODELS)
OTHERS = LANGUAGE_MODELS + ANALYSES + SYNTHESIS + FINE_TUNING
THEORY = [(s, preset) for s, preset in PRESETS if program(CONFIGS[s]) not in OTHERS]


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Small corpora of invented words, as a user's folders, and the data directory."""
    root = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        for i in range(60):
            letters = rng.choice(list("aeiou nrst"), size=(80, 5))
            (root / name / f"{i}.txt").write_text(" ".join("".join(w) for w in letters))
    return root


def shrink(config: ConfigDict, corpora: Path) -> ConfigDict:
    """The same config at the smallest width, on small corpora, for two steps."""
    used = dict.fromkeys([*config.data.evaluate, config.data.source, config.noise.source or None])
    stands = {name: str(corpora / small) for name, small in zip(used, NAMES, strict=False)}
    small = ConfigDict(config.to_dict()).lock()
    small.data.update(dict(tokenizer="bytes", data_dir=str(corpora / "data"), length=16))
    small.data.update(
        dict(
            source=stands[config.data.source],
            evaluate=tuple(stands[name] for name in config.data.evaluate),
            evaluate_windows=8,
        )
    )
    small.noise.source = stands[config.noise.source] if config.noise.source else ""
    small.model.update(dict(layers=2, width=16, heads=2, kv_heads=0, mlp_width=0))
    small.model.vocab_size = 0 if config.model.vocab_size == 0 else 320
    small.members.seed = config.members.seed[:2]
    small.mesh.update(dict(member=1, data=0, model=1))
    small.train.update(dict(steps=2, batch_size=8, log_every=1, evaluate_every=0))
    small.train.update(dict(checkpoint_every=2, keep_every=0, accumulate=1))
    for name in {small.data.source, small.noise.source, *small.data.evaluate} - {""}:
        prepare(name, data_dir=small.data.data_dir, tokenizer="bytes")
    return small


@pytest.mark.parametrize(("stem", "preset"), LANGUAGE)
def test_every_preset_takes_two_steps(stem, preset, corpora, tmp_path):
    config = shrink(CONFIGS[stem].get_config(preset), corpora)
    run, states = train(config, tmp_path)
    rows = [row for row in read_rows(tmp_path) if row["step"] == 2]
    assert int(states.step[0]) == 2
    assert {row["member"] for row in rows} == set(range(len(run.members)))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.all(np.abs(np.array(losses) - np.log(run.model.config.vocab_size)) < 1)


@pytest.mark.parametrize("preset", list(CONFIGS["noise"].PRESETS))
def test_the_noise_study_reports_every_arm(preset, corpora, tmp_path):
    noise = load(ROOT / "experiments" / "noise.py")
    config = CONFIGS["noise"].get_config(preset)
    arms = {name: shrink(arm, corpora) for name, arm in noise.arms(config).items()}
    done = [noise.run_arm(arm, tmp_path / name, name) for name, arm in arms.items()]
    figure = noise.noise_report.write(
        tmp_path / "report", done, provenance(config, (0, 1)), config, "python experiments/noise.py"
    )
    assert figure.read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report" / "report.md").read_text()
    for arm in arms:
        assert f"]({'<'}{arm}.png>)" in report
    table = (tmp_path / "report" / "tokens.csv").read_text().splitlines()
    first = done[0]
    texts = len({first.own, *first.others})
    assert len(table) == 1 + texts * (1 + len(first.kinds) * len(first.rates))
    for arm, text in zip(done, report.split("\n## ")[1:], strict=False):
        # The report cuts absolute paths down to their last name.
        assert re.search(rf"Trained on `\S*{Path(arm.own).name}`", text)
        assert arm.own == arm.config.data.source
        assert arm.own not in arm.others


@pytest.mark.parametrize(("stem", "preset"), THEORY)
def test_every_theory_study_writes_report_figures_and_tables(stem, preset, tmp_path):
    study = load(ROOT / program(CONFIGS[stem]))
    config = CONFIGS[stem].get_config(preset)
    config.update(CONFIGS[stem].SMALL)
    command = f"python {program(CONFIGS[stem])} --config=configs/{stem}.py:{preset}"
    report = study.run(config, tmp_path / "work", tmp_path / "report", command)
    assert report == tmp_path / "report" / "report.md"
    text = report.read_text()
    assert command in text
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", text))
    assert drawn == {path.name for path in report.parent.glob("*.png")} != set()
    for name in drawn:
        image = (report.parent / name).read_bytes()
        table = (report.parent / name).with_suffix(".csv").read_text().splitlines()
        assert image.startswith(b"\x89PNG")
        assert len(table) > 1
        assert all(line.count(",") == table[0].count(",") for line in table)
        assert not any("nan" in line.lower() for line in table)
    # What was simulated is not simulated again.
    stored = (tmp_path / "work" / "points.jsonl").read_bytes()
    study.run(config, tmp_path / "work", tmp_path / "report", command)
    assert (tmp_path / "work" / "points.jsonl").read_bytes() == stored
    assert report.read_text().split("## How this")[0] == text.split("## How this")[0]


def test_differences_are_paired_by_seed():
    noise_arm = load(ROOT / "experiments" / "noise_arm.py")
    members = [
        {"seed": seed, "kind": kind, "rate": rate}
        for seed in (3, 1)
        for kind, rate in (("uniform", 0.0), ("uniform", 0.2), ("dropped", 0.2))
    ]
    losses = [5.0, 5.5, 5.2, 3.0, 3.3, 3.1]
    arm = noise_arm.Arm(
        name="tokens",
        config=ConfigDict(dict(data=dict(source="text", evaluate=("text",)))),
        members=members,
        parameters=1,
        vocab_size=4,
        rows=[{"eval/text/loss": loss} for loss in losses],
    )
    rise = arm.rise("text", "uniform", 0.2)
    assert rise.mean == pytest.approx(0.4)
    assert rise.standard_error == pytest.approx(0.1)
    assert arm.rise("text", "uniform", 0.2, over="dropped").mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": {"rate": (0.1,)}}, "config.members.rate of the arm tokens needs 0"),
        ({"members": {"learning_rate": (1e-3, 3e-3)}}, "config.members.learning_rate of the arm"),
        ({"members": {"seed": (1, 1)}}, "config.members.seed of the arm"),
        ({"data": {"evaluate": ("imdb",)}}, "must contain config.data.source, 'sotu'"),
    ],
)
def test_a_study_that_cannot_be_compared_is_refused_before_training(change, words):
    noise = load(ROOT / "experiments" / "noise.py")
    config = CONFIGS["noise"].get_config("demo")
    config.update(change)
    with pytest.raises(UserError, match=words):
        noise.arms(config)


def test_a_config_of_another_study_is_refused():
    noise = load(ROOT / "experiments" / "noise.py")
    with pytest.raises(UserError, match="has no arms"):
        noise.arms(CONFIGS["lm"].get_config("laptop"))
