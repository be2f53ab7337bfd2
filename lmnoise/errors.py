"""The one exception that users are meant to read, and what others say in a line."""


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key and the remedy. Entry points print
    it to standard error and exit with status 2 (see `lmnoise.cli.run`); nothing has been lost.
    """


def first_line(error: BaseException) -> str:
    """What an error says, at most 200 characters of one line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
