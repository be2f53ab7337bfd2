"""Lets Orbax keep checkpoints in s3:// as it does in gs://.

Orbax 0.12 knows one object store, although tensorstore, which writes its arrays, knows both. Its
few functions that tell gs:// from a local disk are replaced here, once, by ones that also know
s3://; for every other path they do what they did. A version of Orbax that knows s3:// itself makes
this file superfluous.
"""

import functools
import os
import posixpath
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from lmnoise.errors import UserError

_S3 = "s3://"


@functools.cache
def enable() -> None:
    """Makes the change; a second call does nothing.

    Raises:
      UserError: this version of Orbax has not the functions that are to be changed.
    """
    changes = (
        (gcs_utils, "is_gcs_path", lambda path: True),
        (gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False),
        (gcs_utils, "get_kvstore_for_gcs", _store),
        (tensorstore_utils, "_use_gcs_driver", lambda path: True),
        (tensorstore_utils, "_normalize_path", _normalized),
    )
    for module, name, _ in changes:
        if not callable(getattr(module, name, None)):
            raise UserError(
                f"Orbax {ocp.__version__} cannot keep checkpoints in s3://: install the version "
                "of requirements.lock, or use a --workdir on gs:// or a local disk"
            )
    for module, name, on_s3 in changes:
        setattr(module, name, _also_on_s3(getattr(module, name), on_s3))


def _also_on_s3(original: Any, on_s3: Any) -> Any:
    @functools.wraps(original)
    def chosen(path, *arguments, **options):
        if os.fspath(path).startswith(_S3):
            return on_s3(path)
        return original(path, *arguments, **options)

    return chosen


def _store(path: str) -> dict[str, Any]:
    """tensorstore's specification of an s3:// path; credentials are found as AWS's tools do."""
    bucket, _, key = path.removeprefix(_S3).partition("/")
    store = {"driver": "s3", "bucket": bucket, "path": key}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return store | ({"endpoint": endpoint} if endpoint else {})


def _normalized(path: str) -> str:
    return _S3 + posixpath.normpath(path.removeprefix(_S3))
