"""Points of a long study or analysis that are computed once: one that was killed goes on.

One line of `points.jsonl` is one setting with what was computed for it. A point is found again by
its setting, so the setting must hold all that the point depends on, the seed included; the code
is not part of it, so after changing the code remove the file.

One process at a time may work in a folder: the file is not locked, and a process that starts takes
the line that another is writing for one cut short by a kill.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmnoise.errors import UserError

FILE = "points.jsonl"

type Setting = dict[str, Any]
type Result = dict[str, Any]


def compute(
    workdir: Path, settings: Sequence[Setting], work: Callable[[Setting], Result], title: str
) -> list[Result]:
    """What `work` returns for every setting, in their order; known points are not computed again.

    Args:
      workdir: the folder of `points.jsonl`, made if missing. Several studies may share it.
      settings: what JSON can write, with string keys. Equal settings are computed once.
      work: called for each setting that is not known. What it returns is written and flushed
        before the next call, and handed on as JSON reads it back (tuples as lists), so that a
        study that went on has the same numbers as one that was not stopped.
      title: what the progress bar says.

    Raises:
      UserError: `workdir` is a file, or a line before the last one is not a point.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{workdir} is a file: name a folder for the points") from None
    path = workdir / FILE
    known = _read(path)
    keys = [_key(setting) for setting in settings]
    todo = {key: s for key, s in zip(keys, settings, strict=True) if key not in known}
    total = len(set(keys))
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=total, initial=total - len(todo), desc=title, unit="point") as progress,
    ):
        for key, setting in todo.items():
            line = json.dumps({"setting": setting, "result": work(setting)})
            file.write(line + "\n")
            file.flush()
            known[key] = json.loads(line)["result"]
            progress.update()
    return [known[key] for key in keys]


def _key(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True)


def _read(path: Path) -> dict[str, Result]:
    """The points of the file, from which a last line cut short by a kill is removed."""
    if not path.exists():
        return {}
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(torn))
    known = {}
    for number, line in enumerate(lines, 1):
        try:
            point = json.loads(line)
            known[_key(point["setting"])] = point["result"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}, is no point: remove that line") from None
    return known
