"""Data directories in object stores: this machine's copy of what it needs of them.

Memory maps need a local file. So `packed/` and `tokenizers/` of a remote data directory are made
on this machine and published, or fetched from there once, into a folder below
`lmnoise.storage.cache_folder`; what is only used on the way (`downloads/`, `tfds/`) stays there.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from lmnoise import storage
from lmnoise.data.files import locked
from lmnoise.errors import UserError


def local_data_dir(data_dir: epath.PathLike) -> Path:
    """The data directory itself if it is local, else this machine's copy of it."""
    return storage.cache_folder(data_dir) if storage.is_remote(data_dir) else Path(data_dir)


def fetch(
    remote: epath.Path,
    local: Path,
    marker: str,
    names: Sequence[str] = (),
    sha256: Mapping[str, str] | None = None,
) -> None:
    """Brings files of a remote folder here, if they are not here already.

    Args:
      remote: a folder that `publish` wrote.
      local: where its copy lies.
      marker: the file that is written last; when it says something new, the copies of an earlier
        state are dropped.
      names: the other files that are wanted.
      sha256: what the contents of some of the files must be, as hexadecimal digits.

    Raises:
      UserError: a file is missing there, or is not what `sha256` says.
    """
    with locked(local):
        said = (remote / marker).read_bytes()
        if not (local / marker).exists() or (local / marker).read_bytes() != said:
            shutil.rmtree(local, ignore_errors=True)
        local.mkdir(exist_ok=True)
        for name in names:
            if not (local / name).exists():
                _download(remote / name, local / name, (sha256 or {}).get(name))
        (local / marker).write_bytes(said)


def _download(remote: epath.Path, local: Path, sha256: str | None) -> None:
    temporary = local.with_name(local.name + ".tmp")
    digest = hashlib.sha256()
    remedy = f"remove {remote.parent} and prepare it again"
    try:
        with remote.open("rb") as source, temporary.open("wb") as copy:
            while chunk := source.read(1 << 24):
                digest.update(chunk)
                copy.write(chunk)
    except FileNotFoundError:
        raise UserError(f"{remote.parent} has no {remote.name}: {remedy}") from None
    if sha256 is not None and digest.hexdigest() != sha256:
        temporary.unlink()
        raise UserError(
            f"{remote} has the SHA-256 {digest.hexdigest()} instead of {sha256}: {remedy}"
        )
    os.replace(temporary, local)


def publish(local: Path, remote: epath.Path, marker: str) -> None:
    """Copies a folder's files to a remote folder, `marker` last; nothing if it is there already."""
    said = (local / marker).read_bytes()
    if (remote / marker).exists() and (remote / marker).read_bytes() == said:
        return
    for file in sorted(local.iterdir()):
        if file.name != marker:
            with file.open("rb") as source, (remote / file.name).open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 24)
    (remote / marker).write_bytes(said)
