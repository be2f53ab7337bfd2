"""What every entry point does with a failure: one sentence and an exit status."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

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


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its status (0 for None).

    What `failure` knows becomes one sentence on standard error and its status; a closed pipe
    (`... | head`) ends silently with status 141. Anything else is a bug and keeps its traceback.
    """
    try:
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
