"""`python -m lmnoise.theory collapse` against the closed forms that its answers come from."""

import re
import subprocess
import sys

import numpy as np
import pytest

from lmnoise.errors import UserError
from lmnoise.theory import __main__ as calculator
from lmnoise.theory import collapse


class Arguments:
    """What argparse would give, with its defaults."""

    def __init__(self, **changes):
        self.n_real, self.synthetic_share, self.quality = 400.0, 0.25, 0.4
        self.spectrum, self.dimension, self.signal = "powerlaw:1.2", 80, 1.0
        self.noise, self.noise_synthetic, self.penalty, self.cost = 0.5, None, None, 5.0
        vars(self).update(changes)


def run(*words):
    command = [sys.executable, "-m", "lmnoise.theory", "collapse", *words]
    return subprocess.run(command, capture_output=True, text=True)


def exact(n_real, n_synthetic, penalty, quality=0.4):
    eigenvalues = collapse.powerlaw(80, 1.2)
    return collapse.ridge(
        eigenvalues,
        np.ones(80) / 80,
        quality * np.ones(80) / 80,
        n_real=n_real,
        n_synthetic=n_synthetic,
        noise_real=0.5,
        noise_synthetic=0.5,
        penalty=penalty,
    ).total


def best(n_real, n_synthetic):
    return collapse.optimal(
        lambda penalty: exact(n_real, n_synthetic, penalty), {"penalty": (1e-8, 1e4)}
    ).total


def value(text, label):
    found = re.search(rf"^{re.escape(label)}\s+(\S+)", text, re.MULTILINE)
    return float(found[1].replace(",", "").rstrip("%"))


def test_the_command_prints_the_prediction():
    words = "--n_real=400 --synthetic_share=0.25 --quality=0.4 --spectrum=powerlaw:1.2"
    answer = run(*words.split(), "--dimension=80")
    assert answer.returncode == 0
    assert answer.stderr == ""
    assert value(answer.stdout, "predicted error") == pytest.approx(best(400, 400 / 3), rel=1e-3)
    assert value(answer.stdout, "the real samples alone") == pytest.approx(best(400, 0), rel=1e-3)


def test_samples_worth_and_shares_solve_their_equations():
    setting = calculator.Setting(Arguments())
    error = setting.error(400.0, 100.0)
    worth = calculator.real_alone(setting, error)
    assert best(worth, 0.0) == pytest.approx(error, rel=1e-4)
    added = calculator.largest_share(setting, 400.0, 1.05, added=True)
    assert best(400.0, 400.0 * added / (1 - added)) == pytest.approx(1.05 * best(400, 0), rel=1e-4)
    swapped = calculator.largest_share(setting, 400.0, 1.05, added=False)
    assert best(400 * (1 - swapped), 400 * swapped) == pytest.approx(1.05 * best(400, 0), rel=1e-4)
    assert swapped < added


def test_extremes():
    setting = calculator.Setting(Arguments(quality=0.0))
    assert calculator.largest_share(setting, 400.0, 1.05, added=True) == 1.0
    assert calculator.real_alone(setting, 0.0) == np.inf
    assert calculator.real_alone(setting, 1e9) == 1.0
    text = calculator.report(Arguments(synthetic_share=0.0, penalty=0.0))
    assert value(text, "floor, however many samples") == pytest.approx(0, abs=1e-9)
    assert "0.000e" not in text


def test_spectra(tmp_path):
    file = tmp_path / "eigenvalues.txt"
    file.write_text("4\n1\n1\n")
    np.testing.assert_allclose(calculator.spectrum(str(file), 7), [2, 0.5, 0.5])
    np.testing.assert_allclose(calculator.spectrum("isotropic", 3), 1)
    np.testing.assert_allclose(calculator.spectrum("powerlaw:2", 50), collapse.powerlaw(50, 2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("powerlaw:", "give a number"),
        ("gauss", "neither isotropic, powerlaw:EXPONENT nor a file"),
        ("file:1 x 2", "write one eigenvalue a line"),
        ("file:1\n-2", "not negative"),
        ("file:0\n0", "some eigenvalue must be above 0"),
    ],
)
def test_bad_spectra_are_named(text, words, tmp_path):
    if text.startswith("file:"):
        (tmp_path / "spectrum.txt").write_text(text.removeprefix("file:"))
        text = str(tmp_path / "spectrum.txt")
    with pytest.raises(UserError, match=words):
        calculator.spectrum(text, 5)


@pytest.mark.parametrize(
    "word",
    ["--synthetic_share=1.5", "--quality=-1", "--n_real=0", "--dimension=2.5", "--noise=nan"],
)
def test_bad_flags_are_named_and_the_status_is_2(word):
    good = {"--n_real": "10", "--synthetic_share": "0.1", "--quality": "1"}
    name, given = word.split("=")
    answer = run(*(f"{k}={v}" for k, v in (good | {name: given}).items()))
    assert answer.returncode == 2
    assert name in answer.stderr
    assert given in answer.stderr
    assert "Traceback" not in answer.stderr
