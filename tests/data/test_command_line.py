"""What an entry point prints and exits with, for each way in which it can end."""

import errno
import os

import pytest

from lmnoise import cli
from lmnoise.data.files import locked
from lmnoise.errors import UserError


def raising(error):
    def main():
        raise error

    return main


def system_error(code, name=None):
    return OSError(code, os.strerror(code), name)


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(UserError("no such key 'x'")), 2, "error: no such key 'x'\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted\n"),
        (
            raising(system_error(errno.ENOSPC)),
            2,
            "error: No space left on device: free some space and run the same command again\n",
        ),
        (
            raising(system_error(errno.EACCES, "/x")),
            2,
            "error: Permission denied (/x): name a folder that you may write to, or mend its "
            "permissions\n",
        ),
    ],
)
def test_status_and_words(main, status, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", [ValueError("a bug"), system_error(errno.EBADF)])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        cli.run(raising(error))
    assert raised.value is error


def test_a_data_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"), locked(tmp_path / "file" / "a" / "b"):
        pass
