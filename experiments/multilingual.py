"""Study: what fine-tuning on a language does to heads, representations, vocabulary and output.

    python experiments/multilingual.py --config=configs/multilingual.py:laptop --workdir=runs/X

Fine-tunes a checkpoint on each language, with its own tokens and with new ones, measures before,
on the way and after, and writes a report. Results are stored run by run, and runs are saved: the
same command goes on after a stop or a kill.
"""

import functools
from pathlib import Path
from typing import Any

import multilingual_probes
import multilingual_report
import study
from ml_collections import ConfigDict
from multilingual_result import Result
from multilingual_runs import (
    DIRECT,
    EXTENDED,
    Runs,
    beginnings,
    endings,
    extended,
    identity_of,
    switched,
)
from multilingual_texts import read

from lmnoise import cli
from lmnoise.analyze import series
from lmnoise.analyze.defaults import label
from lmnoise.analyze.subject import open_subject
from lmnoise.errors import UserError
from lmnoise.evaluation.scripts import SCRIPTS
from lmnoise.report import provenance, write_report

SECTIONS = ("checkpoint", "multilingual", "data", "model", "mesh", "continuation")


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Measures everything and writes the report; the path of report.md.

    Raises:
      Stopped: a signal came while a model was trained; what was found is stored.
      UserError: a key has no sensible value, or a text is missing.
    """
    section = config.multilingual
    _check(section)
    folder.mkdir(parents=True, exist_ok=True)
    subject = open_subject(config.checkpoint, config, (), 0, workdir)
    texts = read(subject, config)
    identity = identity_of(texts, config)
    [before] = subject.compute(
        [identity | {"what": "probes before"}],
        lambda _: multilingual_probes.probe(subject, subject.params, texts, config),
        "heads and representations",
    )
    header = series.header([series.entry(subject, None)])
    found: dict[str, dict[str, Any]] = {label(language): {} for language in section.languages}
    direct = Runs(subject, config, texts, DIRECT, identity)
    for language in section.languages:
        found[label(language)][DIRECT] = direct.measure(language)
    for language in section.extended:
        grown = extended(subject, language, config)
        runs = Runs(grown, config, texts, EXTENDED, identity)
        found[label(language)][EXTENDED] = runs.measure(language)
    count, tokenizer = section.generation.prompts, subject.tokenizer
    begun = {language: beginnings(texts.scored[language], count) for language in found}
    people = {
        language: [
            switched(tokenizer.encode(text), tokenizer, language)
            for text in endings(texts.scored[language], count)
        ]
        for language in found
    }
    sizes = {name: [len(text.encode()) for text in of] for name, of in texts.scored.items()}
    paragraphs = len(next(iter(texts.aligned.values())).lengths_N)
    result = Result(before, found, begun, people, texts.trained, paragraphs, sizes)
    blocks = [f"Made by `{command}`.", header]
    blocks += multilingual_report.blocks(result, config, folder)
    origin = provenance(config, section.seeds)
    write_report(folder, "What fine-tuning on a language changes", blocks, origin, config)
    return folder / "report.md"


def _check(section: ConfigDict) -> None:
    """Raises a UserError for a value that would only fail after hours."""
    if surplus := set(section.extended) - set(section.languages):
        raise UserError(
            f"config.multilingual.extended has {sorted(surplus)[0]}, which is not among "
            "config.multilingual.languages: new tokens are held against training without them"
        )
    for language in map(label, section.languages):
        if language.split("-")[0] not in SCRIPTS:
            raise UserError(
                f"config.multilingual.languages has {language}, whose scripts are not known: name "
                f"the corpus's folder {', '.join(SCRIPTS)}, or add it to lmnoise/evaluation/scripts"
            )
    if section.extended and not section.rates:
        raise UserError(
            "config.multilingual.rates is empty: name the learning rates to choose from"
        )
    if section.training.evaluate_every < 1:
        raise UserError("config.multilingual.training.evaluate_every must be at least 1")


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "multilingual", run, SECTIONS))
