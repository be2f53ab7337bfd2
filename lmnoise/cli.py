"""Around the work of every entry point: compiled programs are kept, a failure is one sentence."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import jax

from lmnoise import storage
from lmnoise.errors import UserError

_MENDABLE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of the quota and run the same command again",
    errno.EROFS: "name a folder on a writable file system",
    errno.EACCES: "name a folder that you may write to, or mend its permissions",
    errno.EPERM: "name a folder that you may write to, or mend its permissions",
}


def failure(error: BaseException) -> tuple[int, str] | None:
    """(exit status, sentence) of an error that its user can mend; None for a bug.

    `UserError`, a disk that is full or may not be written, and an object store that fails: 2.
    Ctrl-C: 130.
    """
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        where = f" ({error.filename})" if error.filename else ""
        return 2, f"error: {error.strerror}{where}: {_MENDABLE[error.errno]}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if sentence := storage.failure(error):
        return 2, f"error: {sentence}"
    return None


def keep_compiled_programs() -> None:
    """Keeps what takes longer than 0.2 s to compile in the user's cache, up to 2 GB.

    The folder is `lmnoise/compiled` under XDG_CACHE_HOME or ~/.cache; JAX_COMPILATION_CACHE_DIR
    names another, and JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(storage.user_cache() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", 2 * 10**9)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its status (0 for None).

    Compiled programs are kept on disk, so that a second start need not compile; see
    `keep_compiled_programs`.

    What `failure` knows becomes one sentence on standard error and its status; a closed pipe
    (`... | head`) ends silently with status 141. Anything else is a bug and keeps its traceback.
    """
    try:
        keep_compiled_programs()
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more on exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (Exception, KeyboardInterrupt) as error:
        known = failure(error)
        if known is None:
            raise
        status, sentence = known
        print(sentence, file=sys.stderr)
    sys.exit(status)
