"""Writing files and folders so that a killed run leaves nothing half-made."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A fresh sibling folder of `target` that takes its name when the block ends well.

    Call it under `locked(target)`: what an earlier, killed run left under a temporary name is
    removed first. On an error the temporary folder goes, and `target` stays as it was.
    """
    prefix = f".{target.name}.tmp-"
    for left_over in target.parent.glob(f"{_glob_escape(prefix)}*"):
        shutil.rmtree(left_over)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomic(target: Path, content: bytes) -> None:
    """Replaces the file `target` with `content`, or leaves it as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


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
