"""Study: memorisation from one example (fast.ai 2023), canaries (arXiv 1802.08232), forgetting.

    python experiments/memorization.py --config=configs/memorization.py:laptop \\
        --workdir=runs/memorization-laptop

Pre-trains a model, fine-tunes it and an imported one for several epochs with the loss of every
example recorded at every sight, plants canaries, varies what is fine-tuned on, and writes a
report. Results are stored one by one: the same command goes on after a stop or a kill.
"""

import functools
from pathlib import Path

import memorization_canaries as canaries
import memorization_forgetting as forgetting
import memorization_forgetting_report as forgetting_report
import memorization_sights as sights
import memorization_sights_report as sights_report
import memorization_verdict as verdict
import study
from memorization_training import Bench
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise.analyze.subject import Subject, open_subject
from lmnoise.data.packing import open_packed, prepare
from lmnoise.data.stream import Windows
from lmnoise.errors import Stopped, UserError
from lmnoise.report import provenance, write_report
from lmnoise.train import train

CHAPTERS = ("canaries", "sizes", "stages", "mixing")
SECTIONS = ("pretraining", "own", "imported", *CHAPTERS, "data", "model", "mesh")


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Measures everything and writes the report; the path of report.md.

    Raises:
      Stopped: a signal came while a model was trained; what was found is stored.
      UserError: a corpus that is trained on is not scored or too short, or what the chapters say.
    """
    _check(config)
    _check_sizes(config)
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(_pretrained(config, workdir))
    arms = {"own": sights.measure(bench, config.own, "own")}
    found = verdict.Found(
        arms=arms,
        canaries=canaries.measure(bench, config.canaries),
        sizes=forgetting.sizes(bench, config.sizes),
        stages=forgetting.stages(bench, config.stages),
        mixing=forgetting.mixing(bench, config.mixing),
    )
    titles = {"own": _title(bench)}
    if config.imported.checkpoint:
        bench = Bench(_open(config, config.imported, config.imported.checkpoint, workdir))
        arms["imported"] = sights.measure(bench, config.imported, "imported")
        titles["imported"] = _title(bench)
    chapters = [
        block
        for label in reversed(arms)  # what was pre-trained for long says more
        for block in sights_report.blocks(arms[label], config[label], label, titles[label], folder)
    ]
    chapters += canaries.blocks(found.canaries, config.canaries, folder)
    chapters += forgetting_report.sizes(found.sizes, config.sizes, folder)
    chapters += forgetting_report.stages(found.stages, config.stages, folder)
    chapters += forgetting_report.mixing(found.mixing, config.mixing, folder)
    blocks = [f"Made by `{command}`.", *verdict.blocks(found, config, titles), *chapters]
    origin = provenance(config, config.own.seeds)
    write_report(folder, "What one sight of an example leaves behind", blocks, origin, config)
    return folder / "report.md"


def _pretrained(config: ConfigDict, workdir: Path) -> Subject:
    """The own model, pre-trained or read back."""
    own = config.pretraining.copy_and_resolve_references()
    own.data.data_dir = config.data.data_dir
    if train(own, workdir / "pretrained", "pre-training")[1] is None:
        raise Stopped
    return _open(config, config.own, str(workdir / "pretrained"), workdir)


def _open(config: ConfigDict, section: ConfigDict, checkpoint: str, workdir: Path) -> Subject:
    return open_subject(checkpoint, config, section.sources, section.windows, workdir)


def _check(config: ConfigDict) -> None:
    """Every corpus that is trained on is scored, the one of the sights first."""
    for name in ("own", "imported"):
        if config[name].sources[:1] != (config[name].corpus,):
            raise UserError(
                f"config.{name}.sources must begin with config.{name}.corpus, "
                f"{config[name].corpus!r}"
            )
    for name in CHAPTERS:
        for key in ("corpus", "first", "second", "original"):
            if config[name].get(key, config.own.corpus) not in config.own.sources:
                raise UserError(
                    f"config.own.sources lacks {config[name][key]!r}, which config.{name}.{key} "
                    "names: add it"
                )


def _check_sizes(config: ConfigDict) -> None:
    """What is asked for is there, before anything is trained.

    Of the imported model `Bench.examples` says it, whose tokens are known once it is open.
    """
    own, length = config.pretraining, config.data.length
    if own.data.length < length:
        raise UserError(
            f"config.pretraining.data.length is {own.data.length}: make it config.data.length, "
            f"{length}, or more"
        )
    mixed = config.mixing
    seen = mixed.rows * mixed.epochs
    wanted = [
        ("own", config.own.corpus, sights.windows_of(config.own)),
        ("canaries", config.canaries.corpus, canaries.windows_of(config.canaries)),
        ("sizes", config.sizes.corpus, config.sizes.large),
        ("stages", config.stages.first, config.stages.rows),
        ("stages", config.stages.second, config.stages.rows),
        ("mixing", mixed.corpus, seen),
        ("mixing", mixed.original, seen * max(mixed.times, default=0)),
    ]
    where = dict(data_dir=config.data.data_dir, tokenizer=own.data.tokenizer)
    for name in dict.fromkeys([own.data.source, *own.data.evaluate, *config.own.sources]):
        prepare(name, **where)
    for section, corpus, count in wanted:
        have = len(Windows(open_packed(corpus, "train", bos_id=None, **where), length))
        if count > have:
            raise UserError(
                f"config.{section} asks for {count} windows of {length} tokens, and {corpus} has "
                f"{have}: ask for fewer or name a larger corpus"
            )


def _title(bench: Bench) -> str:
    checkpoint = bench.subject.checkpoint
    note = f", {checkpoint.note}" if checkpoint.note else ""
    return f"{checkpoint.name} ({checkpoint.model.parameter_count:,} parameters{note})"


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "memorization", run, SECTIONS))
