"""What does a share of your synthetic text cost a model that reads it beside your real text?

Command:
    python -m lmnoise.analyze synthetic --real=sotu --synthetic=./generated/ \\
        --config=configs/synthetic.py:tiny

`--size=tiny` says the same, from any folder. `--real` and `--synthetic` are corpora: a folder of
.txt, .jsonl or .parquet files, or any name of `python -m lmnoise.data list`; they are the keys
`data.source` and `noise.source`. `members.rate` holds the shares, `members.duration` the sizes as
shares of `train.steps`; `{real}` in `data.tokenizer` is `--real`.

Cost: not yet measured.
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
