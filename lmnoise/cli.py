"""What every entry point does with a failure: one sentence and an exit status."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from lmnoise.errors import UserError

_MENDABLE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of the quota and run the same command again",
    errno.EROFS: "name a folder on a writable file system",
    errno.EACCES: "name a folder that you may write to, or mend its permissions",
    errno.EPERM: "name a folder that you may write to, or mend its permissions",
}


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its status (0 for None).

    `UserError`, and a disk that is full or may not be written, become one sentence on standard
    error and status 2; Ctrl-C becomes status 130; a closed pipe (`... | head`) ends silently
    with status 141. Anything else is a bug and keeps its traceback.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # Python flushes standard output once more on exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}: {_MENDABLE[error.errno]}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
