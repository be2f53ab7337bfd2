"""Statistics against scipy and by hand; written folders are read back as a reader would."""

import csv
import json
import math
import os
import socket
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from scipy import stats

from lmnoise import report
from lmnoise.errors import UserError

FLOATS = st.floats(-1e3, 1e3)
PLACE = {
    "commit": "0" * 40,
    "dirty": False,
    "date": "2026-01-01T00:00:00+00:00",
    "seeds": [0, 1],
    "versions": {"python": "3.12"},
    "machine": {"system": "Linux", "cpu": "some cpu", "cores": 2, "devices": {"cpu": 1}},
}


@given(st.lists(FLOATS, min_size=2, max_size=20))
def test_mean_and_error_agree_with_scipy(values):
    estimate = report.mean_and_error(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.standard_error == pytest.approx(stats.sem(values), abs=1e-12)
    assert estimate.n == len(values)
    if estimate.standard_error > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert estimate.interval == pytest.approx(expected)


def test_one_value_has_no_error():
    mean, error, n = report.mean_and_error([2.0])
    assert (mean, n) == (2.0, 1)
    assert math.isnan(error)
    assert report.mean_and_error([2.0]).text() == "2.0000 (n = 1)"


def test_paired_difference_cancels_what_the_pairs_share():
    baseline = np.array([1.0, 5.0, 9.0])
    mean, error, n = report.paired_difference(baseline + [0.1, 0.2, 0.3], baseline)
    assert mean == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))
    assert n == 3


@pytest.mark.parametrize("values", [[], [[1.0]], 1.0])
def test_values_that_are_not_a_vector_are_refused(values):
    with pytest.raises(ValueError, match="vector"):
        report.mean_and_error(values)


def test_values_of_different_lengths_are_not_paired():
    with pytest.raises(ValueError, match="not paired"):
        report.paired_difference([1.0, 2.0], [1.0])


CELL = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\\`*_[]<>&!~$"), max_size=8
)


@given(st.lists(st.tuples(CELL, st.floats(-1e6, 1e6)), max_size=5))
def test_a_table_in_markdown_is_the_same_table_in_html(rows):
    table = report.Table(("text", "number"), rows)
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(table.markdown())
    page = Page(html)
    assert len(page.cells) == 2 * (1 + len(rows))
    for (text, number), shown in zip(rows, page.cells[3::2], strict=True):
        assert float(shown) == pytest.approx(number, rel=1e-3, abs=1e-300)
        assert " ".join(text.split()) in page.cells


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        report.Table(("a", "b"), [(1, 2, 3)])


def test_csv_keeps_full_precision_and_splits_estimates(tmp_path):
    third = 1 / 3
    rows = [("a, b", third, report.Estimate(third, 0.1, 4)), ("c", 2.0, 7.0)]
    report.write_csv(tmp_path / "t.csv", report.Table(("name", "x", "loss"), rows))
    with open(tmp_path / "t.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["name", "x", "loss", "loss standard error", "loss n"]
    assert first[0] == "a, b"
    assert float(first[1]) == third
    assert [float(cell) for cell in first[2:]] == [third, 0.1, 4]
    assert second[2:] == ["7.0", "", ""]


class Page(HTMLParser):
    """Collects cells, images and links, and fails on tags that are not closed in order."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, html):
        super().__init__()
        self.open, self.cells, self.sources, self.links = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        values = dict(attrs)
        if "src" in values:
            self.sources.append(values["src"])
        if "href" in values:
            self.links.append(values["href"])

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def write_example(folder, config=None, blocks=()):
    with report.style():
        figure = Figure()
        figure.subplots().plot([0, 1], [1, 0])
    report.savefig(figure, folder / "figures" / "loss curve.png")
    blocks = [
        "Some *text* with <b>no</b> raw HTML.",
        report.Table(("noise", "loss"), [("5 %", report.Estimate(1.0, 0.01, 3))], "A caption."),
        report.Figure(folder / "figures" / "loss curve.png", "Loss [nats] against step"),
        *blocks,
    ]
    report.write_report(folder, "BODY & <noise>", blocks, PLACE, config or {"steps": 3})


def test_the_report_reads_back(tmp_path):
    write_example(tmp_path / "result")
    folder = tmp_path / "result"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    written = {"report.md", "report.html", "config.json", "provenance.json"}
    assert names == written | {"figures/loss curve.png"}
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.sources == ["figures/loss%20curve.png"]
    assert set(page.links) == {"config.json", "provenance.json"}
    assert "<title>BODY &amp; &lt;noise&gt;</title>" in html
    assert "<b>" not in html
    assert "1.0000 ± 0.0430" in page.cells
    assert "figures/loss curve.png" in (folder / "report.md").read_text()
    assert json.loads((folder / "config.json").read_text()) == {"steps": 3}
    assert json.loads((folder / "provenance.json").read_text()) == PLACE


def test_a_figure_is_a_png_of_150_dots_per_inch(tmp_path):
    write_example(tmp_path)
    content = (tmp_path / "figures" / "loss curve.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (960, 600)


def test_figures_elsewhere_or_missing_are_refused(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"")
    for path in (tmp_path / "outside.png", tmp_path / "result" / "missing.png"):
        with pytest.raises(ValueError, match=r"figure .* is not a file inside"):
            report.write_report(tmp_path / "result", "t", [report.Figure(path, "c")], PLACE, {})


def test_a_file_in_place_of_the_folder_is_the_users_error(tmp_path):
    (tmp_path / "result").write_text("precious")
    with pytest.raises(UserError, match="name a folder"):
        report.write_report(tmp_path / "result", "t", [], PLACE, {})
    assert (tmp_path / "result").read_text() == "precious"


def test_nothing_of_the_machine_leaks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = ml_collections.ConfigDict(
        {
            "workdir": str(tmp_path / "runs" / "a"),
            "corpus": Path("/home/somebody/texts/mine.txt"),
            "home": "/home/somebody/",
            "tmp": "/scratch",
            "note": "see https://arxiv.org/abs/2502.06604 and file:///home/somebody/b",
            "rate": float("inf"),
            "shares": (0.0, np.float32(0.5)),
        }
    )
    text = f"Corpus: `/home/somebody/c`, run in {tmp_path}/runs/a; loss and/or entropy, 1/2/3."
    write_example(tmp_path / "result", config, [text])
    written = json.loads((tmp_path / "result" / "config.json").read_text())
    assert written["workdir"] == "runs/a"
    assert written["corpus"] == "…/mine.txt"
    assert written["home"] == "~"
    assert written["note"] == "see https://arxiv.org/abs/2502.06604 and …/b"
    assert written["rate"] == "inf"
    assert written["shares"] == [0.0, 0.5]
    assert "Corpus: `…/c`, run in runs/a; loss and/or entropy, 1/2/3." in (
        tmp_path / "result" / "report.md"
    ).read_text(encoding="utf-8")
    for name in ("report.md", "report.html", "config.json", "provenance.json"):
        content = (tmp_path / "result" / name).read_text(encoding="utf-8")
        for secret in (str(tmp_path), "/home/", "somebody", '"/scratch'):
            assert secret not in content


def test_provenance_names_code_seeds_versions_and_machine():
    place = report.provenance(ml_collections.ConfigDict({"rate": 0.1}), np.arange(3))
    assert place["seeds"] == [0, 1, 2]
    assert place["versions"].keys() >= {"python", "jax", "numpy"}
    assert place["machine"]["devices"] == {"cpu": 8}
    assert place["machine"]["cores"] >= 1
    text = json.dumps(place)
    assert str(Path.cwd()) not in text
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    other = report.provenance({"rate": 0.2}, [0])
    assert other["config_sha256"] != place["config_sha256"]
    assert report.provenance({"rate": 0.1}, [0])["config_sha256"] == place["config_sha256"]


def test_commit_and_dirty_follow_the_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    package = tmp_path / "lmnoise"
    package.mkdir()
    (package / "report.py").write_text("")
    monkeypatch.setattr(report, "__file__", str(package / "report.py"))
    assert report.provenance({}, [])["commit"] is None
    git("init", "-q")
    # Inside the checkout of another project, which does not track this file.
    git("commit", "-q", "--allow-empty", "-m", "other")
    assert report.provenance({}, [])["commit"] is None
    git("add", ".")
    git("commit", "-q", "-m", "own")
    place = report.provenance({}, [])
    assert len(place["commit"]) == 40
    assert place["dirty"] is False
    (tmp_path / "results.csv").write_text("an earlier result does not make the code dirty")
    assert report.provenance({}, [])["dirty"] is False
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "new.py").write_text("")
    assert report.provenance({}, [])["dirty"] is True


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    write_example(tmp_path)
    before = (tmp_path / "report.md").read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_example(tmp_path, {"steps": 4}, ["more"])
    assert (tmp_path / "report.md").read_bytes() == before
    assert not list(tmp_path.rglob(".*"))
