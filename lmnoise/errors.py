"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key and the remedy. Entry points print
    it to standard error and exit with status 2 (see `lmnoise.cli.run`); nothing has been lost.
    """
