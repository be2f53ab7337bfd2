"""Fine-tuning along a series: its programs, settings stored one by one, what a report says."""

import logging
import math

import jax
import pytest
from scipy import stats

from lmnoise.analyze import finetune, finetune_report
from lmnoise.analyze.defaults import default_config
from lmnoise.analyze.series import Entry
from lmnoise.analyze.subject import open_subject
from lmnoise.evaluation.outcomes import Outcome, Setting
from lmnoise.evaluation.scores import Scores
from lmnoise.training.population import Population

pytestmark = pytest.mark.usefixtures("compiled_once")
SMALL = dict(
    data=dict(length=16, batch_size=8),
    model=dict(logits_chunk=64),
    continuation=dict(prompts=("once",), new_tokens=2),
    # One member at a time, so that grids of any size run one program.
    finetune=dict(windows=8, train_rows=16, heldout_rows=8, batch_size=8, state_gigabytes=1e-9),
)


@pytest.fixture
def config(small):
    return small(default_config(), SMALL)


def opened(run_folder, step, config, workdir):
    spec = f"{run_folder}/checkpoints/{step}"
    return open_subject(spec, config, finetune.names(config), 8, workdir)


def test_the_second_checkpoint_of_a_series_compiles_nothing(run_folder, config, tmp_path, caplog):
    first = opened(run_folder, 20, config, tmp_path)
    before = finetune.measure(first, config)
    second = opened(run_folder, 40, config, tmp_path)
    second.programs.update(first.programs)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        after = finetune.measure(second, config)
    messages = [r.getMessage() for r in caplog.records]
    assert not [m for m in messages if "tracing" in m or "XLA compilation" in m]
    [one], [other] = (list(next(iter(result.values())).values()) for result in (before, after))
    assert one[0].before != other[0].before
    assert one[0].after != other[0].after


def test_a_rate_that_joins_the_grid_is_trained_alone(run_folder, config, tmp_path, monkeypatch):
    started = []

    def start(self, params, call=Population.start):
        started.append(self.members["learning_rate"].tolist())
        return call(self, params)

    monkeypatch.setattr(Population, "start", start)
    subject = opened(run_folder, 40, config, tmp_path)
    [before] = finetune.measure(subject, config).values()
    started.clear()
    config.finetune.methods.full.learning_rate += (3e-3,)
    subject.programs.clear()
    [after] = finetune.measure(subject, config).values()
    assert [outcome.setting.learning_rate for outcome in after["full"]] == [1e-3, 1e-2, 3e-3]
    assert after["full"][:2] == before["full"]
    assert started == [[pytest.approx(3e-3)]]


def outcome(seed, loss):
    """Two rows, whose losses are 1 before."""
    before, after = Scores([1.0, 1.0], [1.0, 1.0]), Scores([loss, loss + 0.2], [1.0, 1.0])
    texts = ("validation", "test", "pretraining")
    return Outcome(
        Setting(1e-3, seed=seed), dict.fromkeys(texts, before), dict.fromkeys(texts, after)
    )


def test_an_interval_never_passes_from_seeds_to_rows_alone(config, tmp_path):
    """Of two seeds one diverged: the numbers say n = 1 and have no interval."""
    config.finetune.seeds = (0, 1)
    methods = {"full": [outcome(0, 0.5), outcome(1, math.nan)]}
    [cell] = (finetune_report._estimate(methods["full"][:1], finetune_report._gain, seeds=2),)
    assert cell.text() == "0.4000 (n = 1)"
    entry = Entry("a", 1, None, "", {"text:x": methods})
    found = finetune_report.blocks([entry], config, tmp_path)
    assert (
        "cover chance in the rows (of text: documents) that are scored and in the 2 s" in found[0]
    )
    [grid] = [b for b in found[1:] if getattr(b, "header", ("",) * 5)[4] == "diverged"]
    assert grid.rows[0][4] == "1 of 2"
    assert all(math.isnan(cell.half_width) for cell in grid.rows[0][5:])


def test_an_interval_of_a_report_covers_rows_and_seeds():
    own = [outcome(0, 0.5), outcome(1, 0.7)]
    cell = finetune_report._estimate(own, finetune_report._gain, seeds=2)
    # Gains by row 0.4 and 0.2, by seed 0.4 and 0.2: errors of 0.1 each.
    assert cell.mean == pytest.approx(0.3)
    assert cell.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.1 * 2**0.5)
