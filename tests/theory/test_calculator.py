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


def best_mix(n_real, n_synthetic, quality):
    return exact(n_real, n_synthetic, np.geomspace(1e-4, 1e2, 4000), quality).min()


def best(n_real, n_synthetic):
    return best_mix(n_real, n_synthetic, 0.4)


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
    error = setting.error(400.0, 100.0)[0]
    worth = calculator.real_alone(setting, error, 1e9)
    assert best(worth, 0.0) == pytest.approx(error, rel=1e-4)
    added = calculator.largest_share(setting, 400.0, 1.05, added=True)
    assert best(400.0, 400.0 * added / (1 - added)) == pytest.approx(1.05 * best(400, 0), rel=1e-4)
    swapped = calculator.largest_share(setting, 400.0, 1.05, added=False)
    assert best(400 * (1 - swapped), 400 * swapped) == pytest.approx(1.05 * best(400, 0), rel=1e-4)
    assert swapped < added


def test_the_cost_sets_the_limit_of_the_shares():
    text = calculator.report(Arguments(cost=20.0))
    shares = re.findall(r"^share that costs < 20 % +([\d.]+)%", text, re.MULTILINE)
    added, swapped = (float(share) / 100 for share in shares)
    limit = 1.2 * best(400, 0)
    assert best(400, 400 * added / (1 - added)) == pytest.approx(limit, rel=2e-3)
    n = 400 / 0.75
    assert best(n * (1 - swapped), n * swapped) == pytest.approx(1.2 * best(n, 0), rel=2e-3)


def test_extremes():
    setting = calculator.Setting(Arguments(quality=0.0))
    assert calculator.largest_share(setting, 400.0, 1.05, added=True) == 1.0
    assert calculator.real_alone(setting, 0.0, 1e9) == np.inf
    assert calculator.real_alone(setting, 1e9, 1e9) == 1.0
    text = calculator.report(Arguments(synthetic_share=0.0, penalty=0.0))
    assert value(text, "floor, however many samples") == pytest.approx(0, abs=1e-9)
    assert "0.000e" not in text


def test_the_floor_is_that_of_the_paper():
    text = calculator.report(Arguments(penalty=0.0))
    assert value(text, "floor, however many samples") == pytest.approx(0.25**2 * 0.4, rel=1e-3)
    found = re.search(r"without penalty ([\d.]+)", text)
    assert float(found[1]) == pytest.approx(0.25**2 * 0.4, rel=1e-3)


def test_the_verdict_follows_the_error():
    for quality, word, sign in ((0.0, "help", "-"), (0.4, "hurt", "+")):
        text = calculator.report(Arguments(quality=quality))
        change = best_mix(400, 400 / 3, quality) / best(400, 0) - 1
        assert text.endswith(
            f"Here synthetic data {word}: {change:+.1%} beside the real samples alone."
        )
        assert f"{change:+.1%}"[0] == sign
    unchanged = calculator.report(Arguments(synthetic_share=0.0))
    assert unchanged.endswith("change nothing: +0.0% beside the real samples alone.")


def test_noise_of_the_synthetic_labels():
    """By default that of the real ones."""
    default = calculator.report(Arguments())
    assert calculator.report(Arguments(noise_synthetic=0.5)) == default
    changed = calculator.report(Arguments(noise_synthetic=2.0, penalty=0.1))
    errors = collapse.ridge(
        collapse.powerlaw(80, 1.2),
        np.ones(80) / 80,
        0.4 * np.ones(80) / 80,
        n_real=400.0,
        n_synthetic=400 / 3,
        noise_real=0.5,
        noise_synthetic=2.0,
        penalty=0.1,
    )
    assert value(changed, "predicted error") == pytest.approx(float(errors.total), rel=1e-3)


@pytest.mark.parametrize(
    ("n_real", "share", "ending"),
    [
        (80.0, 0.25, "help: without them the error is infinite."),
        (60.0, 0.25, "hurt: without them the error is finite."),
        (80.0, 0.0, "No verdict: the error is infinite with and without synthetic data."),
    ],
)
def test_no_number_is_given_where_the_error_is_infinite(n_real, share, ending):
    text = calculator.report(Arguments(n_real=n_real, synthetic_share=share, penalty=0.0))
    assert text.endswith(ending)
    assert "infinite (interpolation threshold)" in text
    assert not re.search(r"\bnan\b|\binf\b", text)
    rows = dict(re.findall(r"^(.{30})(.*)$", text, re.MULTILINE))
    worth = rows["real samples with this error".ljust(30)]
    assert worth.startswith("no answer") == (n_real / (1 - share) == 80)


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({"signal": 0.0, "noise": 0.0}, "change nothing: without them the error is 0 too."),
        ({"signal": 0.0}, "change nothing: without them the error is 0 too."),
        ({"noise": 0.0}, "hurt: without them the error is 0."),
    ],
)
def test_errors_of_0_have_no_ratio(changes, ending):
    text = calculator.report(Arguments(**changes))
    assert text.endswith(ending)
    assert "nan" not in text


@pytest.mark.parametrize(
    "changes",
    [{"noise": 1e6}, {"noise": 41.0}, {"signal": 1e-9}, {"signal": 1e9}, {"quality": 1e6}],
)
def test_the_best_penalty_is_the_best_in_any_units(changes):
    arguments = Arguments(spectrum="isotropic", n_real=100.0, **changes)
    setting = calculator.Setting(arguments)
    answer = setting.solve(100.0, 100 / 3)
    total, penalty = answer.errors.total[0], answer.penalty[0]
    assert total <= arguments.signal  # what predicting 0 gives
    assert not answer.at_bound[0]
    setting.penalty = penalty
    for factor in (0.99, 1.01):
        setting.penalty = penalty * factor
        assert total <= setting.error(100.0, 100 / 3)[0] * (1 + 1e-12)


def test_the_best_penalty_of_real_data_alone():
    """For a truth that is the same in all directions: noise^2 D / (n signal)."""
    setting = calculator.Setting(Arguments(signal=3.0, noise=0.7))
    assert setting.solve(400.0, 0.0).penalty[0] == pytest.approx(0.49 * 80 / (400 * 3), rel=2e-3)


def test_a_search_that_ends_at_its_bound_says_so(monkeypatch):
    assert "(the best)" in calculator.report(Arguments())
    ends = np.array([1e-6]), np.array([1e-3])
    monkeypatch.setattr(calculator.Setting, "_range", lambda self, *n: ends)
    setting = calculator.Setting(Arguments())
    answer = setting.solve(400.0, 400 / 3)
    assert calculator.penalty_used(setting, answer).startswith("0.001 (the best so far")


def test_spectra(tmp_path):
    file = tmp_path / "eigenvalues.txt"
    file.write_text("4\n1\n1\n")
    np.testing.assert_allclose(calculator.spectrum(str(file), None), [2, 0.5, 0.5])
    np.testing.assert_allclose(calculator.spectrum("isotropic", 3), 1)
    np.testing.assert_allclose(calculator.spectrum("powerlaw:2", 50), collapse.powerlaw(50, 2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("powerlaw:", "give a number"),
        ("gauss", "neither isotropic, powerlaw:EXPONENT nor a file"),
        ("file:1 x 2", "write one eigenvalue a line"),
        ("file:1\n-2", "not negative"),
        ("file:", "some eigenvalue must be above 0"),
        ("file:0\n0", "some eigenvalue must be above 0"),
    ],
)
def test_bad_spectra_are_named(text, words, tmp_path):
    if text.startswith("file:"):
        (tmp_path / "spectrum.txt").write_text(text.removeprefix("file:"))
        text = str(tmp_path / "spectrum.txt")
    with pytest.raises(UserError, match=words):
        calculator.spectrum(text, None)


def test_a_file_and_a_dimension_exclude_each_other(tmp_path):
    file = tmp_path / "eigenvalues.txt"
    file.write_text("4\n1\n1\n")
    words = "--n_real=10", "--synthetic_share=0.1", "--quality=1"
    answer = run(*words, "--dimension=3", f"--spectrum={file}")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: --dimension=3 cannot go with --spectrum=")
    assert answer.stderr.count("\n") == 1


def test_the_dimension_is_600_by_default():
    assert calculator.spectrum("isotropic", None).size == 600
    assert calculator.spectrum("powerlaw:1.5", None).size == 600


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
