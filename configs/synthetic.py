"""What does a share of your synthetic text cost a model that reads it beside your real text?

Command:
    python -m lmnoise.analyze synthetic --config=configs/synthetic.py:tiny \\
        --real=sotu --synthetic=./generated/

`--size=tiny` stands for `--config=configs/synthetic.py:tiny`. `--real` and `--synthetic` are
corpora: a folder of .txt, .jsonl or .parquet files, or any name of `python -m lmnoise.data list`;
they become the keys `data.source` and `noise.source`, and `{real}` in `data.tokenizer` is
`--real`. `members.rate` holds the shares, `members.duration` the sizes as shares of `train.steps`.

Cost: `tiny` trains 43 million tokens, at some 200,000 tokens/s on two quiet cores about 4 minutes
(an estimate from its speed). `small` (170 million tokens of 0.5M parameters) is estimated at an
hour or two, `gpu` (5.5 billion tokens of 12M parameters) at a few hours of one GPU of 80 GB; both
have not been run whole.
Expected: the cost grows with the share, and text of the generator in configs/collapse_lm.py costs
little at shares up to a tenth.
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
