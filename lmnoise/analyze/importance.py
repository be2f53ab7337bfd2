"""How much each parameter matters to each language, computed once and kept on disk."""

import functools
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from lmnoise import tree
from lmnoise.analyze.continued import Continued
from lmnoise.analyze.defaults import label
from lmnoise.analyze.subject import Subject, prepare_all
from lmnoise.data.stream import evaluation_batches
from lmnoise.errors import UserError
from lmnoise.evaluation import regions


def setting(subject: Subject, section: ConfigDict, rule: str, language: str) -> dict[str, Any]:
    """What the importance of one language depends on, JSON."""
    packed = subject.packed(language, "train")
    own = (
        {"windows": section.importance_windows}
        if rule == "taylor"
        else {"training": section.training.to_dict()}
    )
    bos_id = subject.checkpoint.bos_id
    return (
        own
        | ({} if bos_id is None else {"bos": bos_id})
        | {
            "rule": rule,
            "checkpoint": subject.checkpoint.fingerprint,
            "dtype": subject.model.config.dtype,
            "length": subject.data.length,
            "text": packed.meta["splits"]["train"]["sha256"],
        }
    )


def digest_of(setting: dict[str, Any]) -> str:
    """Sixteen letters that stand for a setting in a file's name."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


def all_languages(subject: Subject, section: ConfigDict, rule: str) -> dict[str, Path]:
    """{language: file of its importance}, each the size of the model in float32; see `read`.

    The Taylor rule reads `importance_windows` windows of each train split; the change rule trains
    on it as `training` says. What is in `<workdir>/importance` is not computed again, so a stopped
    analysis goes on with the next language.
    """
    prepare_all(section.languages, subject.checkpoint, subject.data)
    compute = _by_taylor if rule == "taylor" else _by_change(subject, section)
    found = {}
    for language in tqdm(section.languages, desc=f"{subject.name}: {rule} rule", unit="language"):
        own = setting(subject, section, rule, language)
        path = subject.workdir / "importance" / f"{label(language)}-{rule}-{digest_of(own)}.npz"
        if not path.exists():
            _write(path, compute(subject, section, language, own))
        found[label(language)] = path
    return found


def _by_taylor(subject: Subject, section: ConfigDict, language: str, own: dict[str, Any]) -> Any:
    packed = subject.packed(language, "train")
    batches = subject.placed(
        evaluation_batches(
            packed, subject.data.length, subject.data.batch_size, section.importance_windows
        )
    )
    return regions.taylor(subject.model.loss, subject.params, batches)


def _by_change(subject: Subject, section: ConfigDict) -> Callable[..., Any]:
    """One program for all languages."""
    continued = Continued(subject, section.training)
    population = functools.cache(continued.population)

    def compute(subject: Subject, section: ConfigDict, language: str, own: dict[str, Any]) -> Any:
        folder = subject.workdir / "continued" / digest_of(own)
        start, title = subject.checkpoint.params, f"train on {label(language)}"
        states = continued.run(population(), language, start, folder, own, title)
        after = jax.tree.map(lambda leaf: np.asarray(leaf[0]), states.params)
        shutil.rmtree(folder)
        return regions.change(start, after)

    return compute


def _write(path: Path, importance: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(
                file, **{name: np.asarray(leaf) for name, leaf in tree.named_leaves(importance)}
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, params: Any) -> Any:
    """An importance, arrays like `params`; raises a UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return tree.map_named(lambda name, _: archive[name], params)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} cannot be read: remove it and run the same command") from None
