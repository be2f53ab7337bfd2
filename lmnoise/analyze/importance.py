"""How much each parameter matters to each language, computed once and kept on disk."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from lmnoise import tree
from lmnoise.analyze.continued import Continued
from lmnoise.analyze.subject import Subject, label, prepare_all
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
    return own | {
        "rule": rule,
        "checkpoint": subject.checkpoint.fingerprint,
        "dtype": subject.model.config.dtype,
        "length": subject.data.length,
        "text": packed.meta["splits"]["train"]["sha256"],
    }


def digest_of(setting: dict[str, Any]) -> str:
    """Sixteen letters that stand for a setting in a file's name."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


def all_languages(subject: Subject, section: ConfigDict, rule: str) -> dict[str, Any]:
    """{language: importance}, pytrees of float32 arrays on the host, one model's size a language.

    The Taylor rule reads `importance_windows` windows of each train split; the change rule trains
    on it as `training` says. Each language is kept in `<workdir>/importance`, where a stopped
    analysis finds it again.
    """
    prepare_all(section.languages, subject.checkpoint, subject.data)
    found = {}
    for language in tqdm(section.languages, desc=f"{subject.name}: {rule} rule", unit="language"):
        own = setting(subject, section, rule, language)
        digest = digest_of(own)
        path = subject.workdir / "importance" / f"{label(language)}-{rule}-{digest}.npz"
        if not path.exists():
            _write(path, _compute(subject, section, rule, language, digest))
        found[label(language)] = _read(path, subject.checkpoint.params)
    return found


def _compute(subject: Subject, section: ConfigDict, rule: str, language: str, digest: str) -> Any:
    if rule == "taylor":
        packed = subject.packed(language, "train")
        batches = list(
            evaluation_batches(
                packed, subject.data.length, subject.data.batch_size, section.importance_windows
            )
        )
        return regions.taylor(subject.model.loss, subject.params, batches)
    continued = Continued(subject, language, section.training)
    folder = subject.workdir / "continued" / digest
    states = continued.run(
        continued.population(), subject.checkpoint.params, folder, {}, f"train on {label(language)}"
    )
    after = jax.tree.map(lambda leaf: np.asarray(leaf[0]), states.params)
    shutil.rmtree(folder)
    return regions.change(subject.checkpoint.params, after)


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


def _read(path: Path, params: Any) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return tree.map_named(lambda name, _: archive[name], params)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} cannot be read: remove it and run the same command") from None
