"""What ends a command early: an error that users are meant to read, or a signal."""

import re


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key and the remedy. Entry points print
    it to standard error and exit with status 2 (see `lmnoise.cli.run`); nothing has been lost.
    """


class Stopped(Exception):
    """A signal stopped a training after it was saved; the same command goes on."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters; its type if it says nothing.

    Of a longer line the beginning and the end stay: storage libraries name the path first, twice,
    and the reason last. What they add in brackets for machines (` [os_error_code=...`) is cut.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r" \[\w+=.*", "", line)
    return line if len(line) <= 300 else f"{line[:145]} ... {line[-150:]}"
