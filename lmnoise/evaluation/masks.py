"""Masks on disk, a bit an entry, and the way from there to frozen entries.

A file holds named masks of one model. To train with the entries of one of them frozen, beside a
twin with nothing frozen, make it the members' `frozen`:

    masks, about = load(path, params)
    core = masks["core"]
    nothing = jax.tree.map(np.zeros_like, core)
    members = member_arrays([member | {"frozen": mask} for mask in (core, nothing)])
    population = Population(members=members, ...)
    fit(population, ..., start=params)
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmnoise import tree
from lmnoise.errors import UserError, first_line

FORMAT = "lmnoise masks 1"


def save(path: Path, masks: Mapping[str, Any], about: dict[str, Any]) -> None:
    """Writes masks of one model, size/8 bytes each; the old file or the new one survives a kill.

    Args:
      path: the file, `.npz` by custom; its folder is created.
      masks: at least one, by name: bool arrays like the parameters.
      about: what a reader should know (model, rule, share), as JSON can hold it.

    Raises:
      ValueError: there is no mask, or they are not bool arrays of the same names and shapes.
    """
    if not masks:
        raise ValueError("masks is empty")
    leaves = _shapes(next(iter(masks.values())))
    arrays = {}
    for number, (name, mask) in enumerate(masks.items()):
        flat = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
        if _shapes(mask) != leaves or any(leaf.dtype != bool for leaf in flat):
            raise ValueError(f"masks[{name!r}] is not of bool arrays like those of the first mask")
        arrays[f"mask{number}"] = np.packbits(np.concatenate([leaf.reshape(-1) for leaf in flat]))
    header = {"format": FORMAT, "masks": list(masks), "leaves": leaves, "about": about}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The masks by name, NumPy bool arrays of the structure of `params`, and `about`.

    Args:
      path: a file that `save` wrote.
      params: the parameters, or anything of their structure whose leaves have a shape.

    Raises:
      UserError: the file is missing, damaged, no file of masks, or of another model.
    """
    header, packed = _read(Path(path))
    _check_model(Path(path), header["leaves"], _shapes(params))
    sizes = [math.prod(shape) for _, shape in header["leaves"]]
    structure = jax.tree.structure(params)
    masks = {}
    for name, bits in zip(header["masks"], packed, strict=True):
        flat = np.unpackbits(bits, count=sum(sizes)).view(bool)
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        shaped = [part.reshape(s) for part, (_, s) in zip(parts, header["leaves"], strict=True)]
        masks[name] = jax.tree.unflatten(structure, shaped)
    return masks, header["about"]


def _shapes(params: Any) -> list[list[Any]]:
    return [[name, list(leaf.shape)] for name, leaf in tree.named_leaves(params)]


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and each mask's bytes, whose number agrees with the header."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
            packed = [file[f"mask{number}"] for number in range(len(header["masks"]))]
        size = -(-sum(math.prod(shape) for _, shape in header["leaves"]) // 8)
        if any((bits.shape, bits.dtype) != ((size,), np.uint8) for bits in packed):
            raise ValueError(f"a mask is not of {size} bytes")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check the path of the masks"
        ) from error
    except Exception as error:  # zipfile, NumPy and JSON raise many things.
        reason = first_line(error)
        raise UserError(
            f"{path} is damaged or no file of masks ({reason}): make it again with "
            "python -m lmnoise.analyze regions"
        ) from error
    return header, packed


def _check_model(path: Path, theirs: list[list[Any]], mine: list[list[Any]]) -> None:
    if theirs == mine:
        return
    stored, wanted = ({name: tuple(shape) for name, shape in leaves} for leaves in (theirs, mine))
    name = next(
        (n for n in wanted | stored if stored.get(n) != wanted.get(n)), "the order of the leaves"
    )
    raise UserError(
        f"{path} holds masks of another model: {name} is {stored.get(name, 'missing')} there and "
        f"{wanted.get(name, 'missing')} in this model; open the checkpoint that they were made "
        "for, or make masks for this one with python -m lmnoise.analyze regions"
    )
