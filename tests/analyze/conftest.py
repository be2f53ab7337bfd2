"""A tiny trained run and small corpora of invented words, for everything that analyses."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmnoise.config import default_config
from lmnoise.data.packing import prepare
from lmnoise.train import train
from lmnoise.training import mesh

NAMES = ("first", "second", "third", "en-us")


@pytest.fixture(autouse=True)
def on_one_device(one_device):
    """All tests here."""


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Path:
    """A folder of documents for each of `NAMES`; the letters differ, so the texts do."""
    root = tmp_path_factory.mktemp("analyze")
    rng = np.random.default_rng(0)
    for name, letters in zip(
        NAMES, ("aeiou nrst", "bcdf ghjk", "lmnp qrst", "vwxy zaei"), strict=True
    ):
        (root / name).mkdir()
        for i in range(60):
            words = rng.choice(list(letters), size=(40, 5))
            (root / name / f"{i}.txt").write_text(" ".join("".join(w) for w in words))
    rows = [{"text": f"{'no' if i % 2 else 'yes'} {i}", "label": i % 2} for i in range(120)]
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def run_folder(corpora) -> Path:
    """The work directory of a Llama of two layers after 20 and 40 steps."""
    config = default_config()
    source = str(corpora / "first")
    config.data.update(
        dict(source=source, tokenizer="bytes", data_dir=str(corpora / "data"), length=16,
             evaluate=(source,), evaluate_windows=8)
    )  # fmt: skip
    config.model.update(dict(family="llama", layers=2, width=16, heads=2, kv_heads=1, mlp_width=32))
    config.members.learning_rate = (1e-2,)
    config.train.update(dict(steps=40, batch_size=8, log_every=0, checkpoint_every=20, keep=2))
    config.mesh.update(dict(member=1, data=0, model=1))
    prepare(source, data_dir=config.data.data_dir, tokenizer="bytes")
    one = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", one)
        train(config, corpora / "run")
    return corpora / "run"


@pytest.fixture
def small(corpora):
    """Shrinks the config of an analysis or a study to the tiny run and the small corpora."""

    def shrink(config: ConfigDict, changes: dict) -> ConfigDict:
        config.update(changes)
        texts = tuple(f"{corpora / name}/" for name in NAMES)
        config.data.data_dir = str(corpora / "data")
        for section in ("language", "perturb", "parameters"):
            if section in config:
                config[section].update(dict(sources=texts[:2], windows=8))
        config.regions.update(dict(sources=(texts[0], texts[1], texts[3]), languages=texts[:2]))
        if "finetune" in config:
            config.finetune.update(
                dict(tasks=(f"labels:{corpora / 'labels.jsonl'}",), pretraining=texts[0])
            )
            # Every kind of method is a program of its own.
            with config.unlocked():
                full = dict(learning_rate=(1e-3, 1e-2))
                config.finetune.methods = ConfigDict(dict(full=full))
        if "recover" in config:
            config.recover.language = texts[1]
        return config

    return shrink
