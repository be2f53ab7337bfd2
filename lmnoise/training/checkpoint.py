"""Checkpoints by Orbax: asynchronous, atomic, with a keep policy and a fallback.

A checkpoint holds the states and a JSON object with what else the run needs (the spike
detector's history, the metrics since the last log row).
"""

import itertools
import json
import logging
import os
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.options import MultiprocessingOptions

from lmnoise import storage
from lmnoise.errors import UserError, first_line
from lmnoise.training import orbax_s3, processes


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    states: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      folder: where they live, on storage that all processes share; created if missing.
      keep: how many of the latest to keep.
      keep_every: also keep those whose step is a multiple of this; 0 keeps none besides.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int = 2, keep_every: int = 0):
        self.folder = _absolute(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of a save that was killed
        )
        _drop_chatter()
        handlers = {"states": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        if jax.process_count() > 1:
            # Before the filter that drops the record.
            logging.getLogger("absl").filters.insert(0, self._notice_failure)
        # The manager's own restore waits for all processes, and for ever if one cannot read.
        alone = MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(**handlers), multiprocessing_options=alone
        )

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
        """Waits and releases the threads; raises as `save` does."""
        try:
            self.wait()
        finally:
            logging.getLogger("absl").removeFilter(self._notice_failure)
            self._reader.close()
            self._manager.close()

    def restore(self, abstract: Any, at_most: int | None = None) -> Restored | None:
        """The latest checkpoint that can be read, or None if there is none at all.

        One that is truncated or corrupt, for any process, is passed over by all, and set aside as
        `<folder>/../unreadable-<step>`, with a line on standard error, once another was read.

        Args:
          abstract: shapes, dtypes and shardings of the states.
          at_most: prefer checkpoints up to this step, and the earliest of the later ones.

        Raises:
          UserError: checkpoints exist and none can be read, or they are of another shape.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if at_most is not None:
            steps = [s for s in steps if s <= at_most] + [s for s in steps[::-1] if s > at_most]
        failures = {}
        args = {"states": ocp.args.StandardRestore(abstract), "meta": ocp.args.JsonRestore()}
        for step in steps:
            self._check_shapes(step, abstract)
            reason = None
            try:
                restored = self._reader.restore(
                    self.folder / str(step), args=ocp.args.Composite(**args)
                )
            except Exception as error:  # Orbax raises whatever its storage layers raise.
                if _is_no_damage(error):
                    raise
                reason = first_line(error)
            if _for_any_process(reason is not None):
                failures[step] = reason or "by another process"
                continue
            for failed, reason in failures.items():
                self._set_aside(failed, reason, step)
            return Restored(step, restored["states"], restored["meta"])
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read "
                f"({failures[steps[0]]}): start again in another --workdir, or delete this one"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            self._manager.delete(later)

    def _notice_failure(self, record: logging.LogRecord) -> bool:
        """Ends this process of several, as Orbax's thread says that it could not write its part.

        Orbax would wait for the others before it raises, and they for this one's part.
        """
        if record.threadName == "async_save" and record.exc_info:
            try:
                with _full_disk_is_a_user_error(self.folder):
                    raise record.exc_info[1]
            except Exception as error:
                processes.fail(error)
        return True

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Tells a checkpoint of another model from one that is damaged."""
        try:
            tree = self._manager.item_metadata(step)["states"].tree
            stored = {_key(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(tree)}
        except Exception:  # Damaged metadata: restoring will say so.
            return
        wanted = {_key(p): tuple(a.shape) for p, a in jax.tree_util.tree_leaves_with_path(abstract)}
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint of step {step} in {self.folder} is of another model or "
                    f"population: {name} is {stored.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} here; use the config it was made with or "
                    "another --workdir"
                )

    def _set_aside(self, step: int, reason: str, used: int) -> None:
        if jax.process_index() == 0:
            names = (f"unreadable-{step}" + (f"-{n}" if n else "") for n in itertools.count())
            target = next(p for name in names if not (p := self.folder.parent / name).exists())
            (self.folder / str(step)).replace(target)
            print(
                f"the checkpoint of step {step} cannot be read ({reason}); it was moved to "
                f"{target.name} and the one of step {used} is used",
                file=sys.stderr,
            )
        multihost_utils.sync_global_devices("set aside")
        self._manager.reload()


def _for_any_process(fault: bool) -> bool:
    return bool(np.any(multihost_utils.process_allgather(np.array(fault))))


def kept_steps(folder: epath.PathLike) -> list[int]:
    """The steps whose checkpoints lie in a folder, in order, without touching it."""
    found = [path for path in _absolute(folder).glob("[0-9]*") if path.name.isdecimal()]
    # In an object store a checkpoint that is being written has its name already.
    return sorted(int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path))


def read_member(folder: epath.PathLike, step: int, member: int) -> Any:
    """One member's parameters on the host, whatever the devices that wrote them.

    Nothing in the folder changes, so a run may be writing there; leaf by leaf, so that no more
    than one leaf of the other members is held.

    Returns:
      Nested dicts with the keys as strings, leaves (...) without the member axis.

    Raises:
      UserError: there is no such member, or the checkpoint cannot be read.
    """
    _drop_chatter()
    path = _absolute(folder) / str(step) / "states"
    options = ocp.RestoreArgs(restore_type=np.ndarray)

    def read(keys: Any, leaf: Any) -> np.ndarray:
        if not member < leaf.shape[0]:
            raise UserError(
                f"{folder} holds {leaf.shape[0]} members: name one from #0 to "
                f"#{leaf.shape[0] - 1}, not #{member}"
            )
        names = ["params", *(key.key for key in keys)]
        item, restore_args = leaf, options
        for name in reversed(names):
            item, restore_args = {name: item}, {name: restore_args}
        restored = reader.restore(
            path, ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        )
        for name in names:
            restored = restored[name]
        return restored[member].copy()

    with ocp.PyTreeCheckpointer() as reader:
        try:
            stored = reader.metadata(path).item_metadata
            if stored is None:
                raise FileNotFoundError(f"{path} has no index")
            return jax.tree_util.tree_map_with_path(read, stored.tree["params"])
        except UserError:
            raise
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            if _is_no_damage(error):
                raise
            raise UserError(
                f"the checkpoint of step {step} in {folder} cannot be read "
                f"({first_line(error)}): name another step"
            ) from error


def _drop_chatter() -> None:
    """What Orbax prints about errors, with a traceback from every thread, it also raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    previous = sys.unraisablehook
    if getattr(previous, "__name__", "") == "drop_storage":
        return

    def drop_storage(unraisable):
        text = str(unraisable.exc_value)
        if "Event loop is closed" not in text and "error while reading array" not in text:
            previous(unraisable)

    # For good: the storage layers' threads may be calling a hook while it is taken away.
    sys.unraisablehook = drop_storage


def _is_news(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "never retrieved" not in record.getMessage()


def _is_no_damage(error: Exception) -> bool:
    """Whether a failure to read says nothing about what is on disk."""
    if isinstance(error, MemoryError | PermissionError):
        return True
    return any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED"))


def _absolute(folder: epath.PathLike) -> epath.Path:
    """Orbax wants absolute paths; those of object stores (gs://, s3://) are."""
    path = epath.Path(folder)
    if not storage.is_remote(path):
        return path.absolute()
    if os.fspath(path).startswith("s3://"):
        orbax_s3.enable()
    return path


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class _full_disk_is_a_user_error:
    """Turns the storage layers' many words for a full disk into one sentence."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        text = str(error)
        words = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")
        if error is not None and any(word in text for word in words):
            raise UserError(
                f"the disk is full while saving to {self.folder}: free some space and run the "
                "same command again; it resumes from the last complete checkpoint"
            ) from error


def claim(workdir: epath.PathLike, config: dict[str, Any]) -> None:
    """Makes the work directory this config's own, or checks that it is.

    A directory in which nothing has been trained yet goes to whoever comes. Of several processes
    the first claims it, and the others check that they see the same directory.

    Raises:
      UserError: it belongs to another config; the message names the first difference. Or the
        processes do not share it.
    """
    workdir = epath.Path(workdir)
    if jax.process_index() == 0:
        _claim(workdir, config)
    multihost_utils.sync_global_devices("claim")
    if jax.process_index() > 0:
        if not (workdir / "config.json").exists():
            raise UserError(
                f"process {jax.process_index()} does not see what process 0 wrote to {workdir}: "
                "use a --workdir on storage that all processes share, such as gs:// or NFS"
            )
        refuse_difference(workdir, _read_config(workdir), config)


def _claim(workdir: epath.Path, config: dict[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists() and _has_progress(workdir):
        refuse_difference(workdir, _read_config(workdir), config)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_config(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: restore it or use another --workdir") from error


def refuse_difference(place: epath.PathLike, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises a UserError that names the first key in which two configs differ, if any."""
    theirs, mine = _flatten(theirs), _flatten(json.loads(json.dumps(mine)))
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise UserError(
                f"{place} belongs to a run with config.{key} = {theirs.get(key)!r} and this one "
                f"has {mine.get(key)!r}: use another --workdir or the same config"
            )


def _has_progress(workdir: epath.Path) -> bool:
    steps = (workdir / "checkpoints").glob("[0-9]*")
    metrics = workdir / "metrics.jsonl"
    return any(steps) or (metrics.exists() and metrics.stat().length > 0)


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        key: value
        for name, child in config.items()
        for key, value in _flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }
