"""Folders in object stores: gs:// (Google Cloud Storage) and s3:// (Amazon S3 and its like).

Folders are `etils.epath.Path`s, local ones too. Object stores are reached by the packages gcsfs
and s3fs, which are not installed with lmnoise, with the credentials that these find
(`gcloud auth application-default login`; ~/.aws/credentials and AWS_ENDPOINT_URL).
"""

import hashlib
import logging
import os
import traceback
from pathlib import Path

from etils import epath

from lmnoise.errors import UserError, first_line

# The package for each scheme, and where it looks for credentials.
_STORES = {
    "gs": ("gcsfs", "`gcloud auth application-default login`"),
    "s3": ("s3fs", "~/.aws/credentials and AWS_ENDPOINT_URL"),
}
_PACKAGES = ("/gcsfs/", "/s3fs/", "/botocore/", "/aiobotocore/", "/aiohttp/", "/google/auth/")


def is_remote(folder: epath.PathLike) -> bool:
    """Whether a folder lies in an object store."""
    return "://" in os.fspath(folder)


def place(folder: epath.PathLike) -> epath.Path:
    """The folder that a user named; of an object store, its bucket is asked for first.

    Raises:
      UserError: the scheme is unknown, its package is missing, or the bucket is not there or may
        not be read.
    """
    if not is_remote(folder):
        return epath.Path(folder)
    scheme, _, rest = os.fspath(folder).partition("://")
    if scheme not in _STORES or not rest.strip("/"):
        raise UserError(
            f"{folder} is no folder: name a local one, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
        )
    package, credentials = _STORES[scheme]
    # What they report, with a traceback, they also raise.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    bucket = epath.Path(f"{scheme}://{rest.split('/')[0]}")
    try:
        there = bucket.exists()
    except ImportError:
        raise UserError(
            f"{folder} needs the package {package}: run `pip install {package}`"
        ) from None
    except Exception as error:  # each package raises its own
        raise UserError(
            f"{bucket} cannot be reached ({first_line(error)}): check the network and the "
            f"credentials ({credentials})"
        ) from error
    if not there:
        raise UserError(
            f"there is no bucket {bucket} that you may read: make it, name another, or check the "
            f"network and the credentials ({credentials})"
        )
    return epath.Path(folder)


def local_folder(folder: epath.PathLike, flag: str) -> Path:
    """The folder given with a flag where only a local one will do; UserError for any other."""
    if is_remote(folder):
        raise UserError(
            f"{folder} is in an object store, but what goes there is written to local disks only: "
            f"name a local folder with {flag}"
        )
    return Path(folder)


def failure(error: BaseException) -> str | None:
    """A sentence for what the packages that reach object stores raise; None for anything else."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = any(package in frame.filename for frame in frames for package in _PACKAGES)
    # tensorstore, which reads and writes arrays, raises ValueError for everything.
    if isinstance(error, Exception) and (theirs or "http_response_code" in str(error)):
        return (
            f"the object store failed ({first_line(error)}): check its bucket, your permissions "
            "and the network, and run the same command again"
        )
    return None


def user_cache() -> Path:
    """The folder lmnoise/ below XDG_CACHE_HOME or ~/.cache; it may be deleted if nothing runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lmnoise"


def cache_folder(folder: epath.PathLike) -> Path:
    """Where this machine keeps its copies from a folder of an object store."""
    digest = hashlib.sha256(os.fspath(folder).rstrip("/").encode()).hexdigest()[:16]
    return user_cache() / digest
