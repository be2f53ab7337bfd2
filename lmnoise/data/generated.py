"""Folders of text that a model wrote: shards, and what wrote them.

    part-00000.jsonl ...   one shard each, whole or absent
    generator.json         what wrote them, when all are there; `unfinished.json` until then

Beside an unfinished folder's shards lie their counts, `.part-00000.json`. A finished folder is a
user's corpus, see `lmnoise.data.user_files`.
"""

import json
import re
from pathlib import Path
from typing import Any

from lmnoise.data.files import write_file
from lmnoise.errors import UserError

GENERATOR, UNFINISHED = "generator.json", "unfinished.json"
# Where something is only told by its name and place: moving it changes no text.
_NAMES = ("name", "spec", "corpus")


def origin(folder: Path) -> dict[str, Any] | None:
    """What `generator.json` of a folder says; None for a folder that no model wrote.

    Raises:
      UserError: the text is unfinished, or the file is not JSON.
    """
    if (folder / GENERATOR).is_file():
        return _read(folder / GENERATOR)
    if (folder / UNFINISHED).is_file():
        raise UserError(f"the text in {folder} is unfinished: run the command again that writes it")
    return None


def claim(folder: Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """Takes a folder for text of this origin.

    Args:
      folder: that exists.
      head: JSON, what the text depends on.

    Returns:
      What `generator.json` says if the text is finished already, otherwise None.

    Raises:
      UserError: the folder holds something else; the message names what differs.
    """
    for name in (GENERATOR, UNFINISHED):
        if (folder / name).is_file():
            said = _read(folder / name)
            if difference := _difference(said, json.loads(json.dumps(head))):
                raise UserError(
                    f"{folder} holds other text ({difference}): name another folder, or remove it"
                )
            return said if name == GENERATOR else None
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder for the text")
    write_file(folder / UNFINISHED, _json(head))
    return None


def known(folder: Path) -> dict[int, dict[str, int]]:
    """The counts of the shards that are there."""
    found = {}
    for path in folder.glob("part-*.jsonl"):
        number = re.fullmatch(r"part-(\d{5,})\.jsonl", path.name)
        if number and _counts(folder, int(number[1])).is_file():
            found[int(number[1])] = _read(_counts(folder, int(number[1])))
    return found


def write_shard(
    folder: Path, number: int, lines: list[dict[str, Any]], counts: dict[str, int]
) -> None:
    """Writes a shard, an object a line, with its counts."""
    write_file(_counts(folder, number), _json(counts))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_file(_shard(folder, number), text)


def finish(folder: Path, record: dict[str, Any], shards: int) -> None:
    """Writes `generator.json` for the first `shards` shards, and removes what is beyond them.

    Raises:
      UserError: a shard is not there, which another process may have written elsewhere.
    """
    for number in range(shards):
        if not _shard(folder, number).is_file():
            raise UserError(
                f"{_shard(folder, number)} is gone: run the same command again; several processes "
                "need one folder that all of them see"
            )
    for number in known(folder):
        if number >= shards:
            _shard(folder, number).unlink()
    write_file(folder / GENERATOR, _json(record))
    for left_over in [folder / UNFINISHED, *folder.glob(".part-*")]:
        left_over.unlink(missing_ok=True)


def _difference(said: dict[str, Any], head: dict[str, Any], path: str = "") -> str:
    """The first entry of `head` that is said to be another, as `recipe.seed is 0, not 1`."""
    for key, value in head.items():
        before = said.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if found := _difference(before, value, f"{path}{key}."):
                return found
        elif before != value and key not in _NAMES:
            return f"{path}{key} is {before}, not {value}"
    return ""


def _shard(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.jsonl"


def _counts(folder: Path, number: int) -> Path:
    return folder / f".part-{number:05d}.json"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore or remove it") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no JSON object: restore or remove it")
    return said
