"""Checkpoints by Orbax: asynchronous, atomic, with a keep policy and a fallback.

A checkpoint holds the states and a JSON object with what else the run needs (the skipped
batches, the spike detector's history, the config).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from lmnoise.errors import UserError


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    states: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      folder: where they live; created if missing.
      keep: how many of the latest to keep.
      keep_every: also keep those whose step is a multiple of this; 0 keeps none besides.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int = 0):
        self.folder = Path(folder).absolute()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)

    def save(self, step: int, states: Any, meta: dict[str, Any]) -> None:
        """Starts saving; the states may be donated as soon as this returns.

        Raises:
          UserError: the disk is full; earlier checkpoints are untouched.
        """
        with _full_disk_is_a_user_error(self.folder):
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    states=ocp.args.StandardSave(states), meta=ocp.args.JsonSave(meta)
                ),
            )

    def wait(self) -> None:
        """Returns when all that was started is on disk; raises as `save` does."""
        with _full_disk_is_a_user_error(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self.wait()
        self._manager.close()

    def restore(self, abstract: Any) -> Restored | None:
        """The latest checkpoint that can be read, or None if there is none at all.

        One that is truncated or corrupt is set aside as `<folder>/../unreadable-<step>`, with a
        line on standard error, and the one before it is tried.

        Args:
          abstract: shapes, dtypes and shardings of the states.

        Raises:
          UserError: checkpoints exist and none can be read, or they are of another shape.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            self._check_shapes(step, abstract)
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        states=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:  # Orbax raises whatever its storage layers raise.
                self._set_aside(step, error)
            else:
                return Restored(step, restored["states"], restored["meta"])
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read: start "
                "again in another --workdir, or delete this one"
            )
        return None

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Tells a checkpoint of another model from one that is damaged."""
        try:
            tree = self._manager.item_metadata(step)["states"].tree
            stored = {_key(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(tree)}
        except Exception:  # Damaged metadata: restoring will say so.
            return
        wanted = {
            _key(p): tuple(a.shape) for p, a in jax.tree_util.tree_leaves_with_path(abstract)
        }
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint of step {step} in {self.folder} is of another model or "
                    f"population: {name} is {stored.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} here; use the config it was made with or "
                    "another --workdir"
                )

    def _set_aside(self, step: int, error: Exception) -> None:
        target = self.folder.parent / f"unreadable-{step}"
        os.replace(self.folder / str(step), target)
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        print(
            f"the checkpoint of step {step} cannot be read ({reason}); it was moved to "
            f"{target.name} and the one before it is used",
            file=sys.stderr,
        )


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class _full_disk_is_a_user_error:
    """Turns the storage layers' many words for a full disk into one sentence."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        text = str(error)
        if error is not None and ("No space left" in text or "RESOURCE_EXHAUSTED" in text):
            raise UserError(
                f"the disk is full while saving to {self.folder}: free some space and run the "
                "same command again; it resumes from the last complete checkpoint"
            ) from error


def claim(workdir: Path, config: dict[str, Any]) -> None:
    """Makes the work directory this config's own, or checks that it is.

    Raises:
      UserError: it belongs to another config; the message names the first difference.
    """
    path = workdir / "config.json"
    mine = _flatten(json.loads(json.dumps(config)))
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / "config.json.tmp"
        temporary.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    try:
        theirs = _flatten(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: restore it or use another --workdir") from error
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise UserError(
                f"{workdir} belongs to a run with config.{key} = {theirs.get(key)!r} and this one "
                f"has {mine.get(key)!r}: use another --workdir or the same config"
            )


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        key: value
        for name, child in config.items()
        for key, value in _flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }
