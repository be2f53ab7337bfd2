"""Writing files and folders so that a killed run leaves nothing half-made."""

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lmnoise.errors import UserError


def slug(name: str) -> str:
    """`name` as one path component: anything but letters, digits and `._+,@-` becomes `-`."""
    return re.sub(r"[^\w.+,@-]+", "-", name).strip("-.")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the right to make `target` (a file or folder); a second process waits its turn.

    The lock lives in a hidden file beside the target and ends with the process that holds it.
    Raises UserError if the target's folder cannot exist.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError):
        raise UserError(f"{target.parent} cannot be made: name another --data_dir") from None
    with open(target.parent / f".{target.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that makes {target}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A fresh sibling folder of `target` that is gone after the block, however it ends.

    Call it under `locked(target)`: what an earlier, killed run left there is removed first.
    """
    prefix = f".{target.name}.tmp-"
    for left_over in target.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(left_over)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A fresh folder that takes the name `target` when the block ends well.

    Call it under `locked(target)`. On an error the folder goes, and `target` stays as it was.
    """
    with temporary_folder(target) as temporary:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(target.parent)


def write_file(path: Path, text: str) -> None:
    """Writes a file in one step: a killed run leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        # Not every failure of writing says where.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
