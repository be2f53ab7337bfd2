"""A language model on the text of one corpus, or on your own.

Command:
    python -m lmnoise.data prepare sotu --tokenizer=bpe:1024@sotu
    python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/lm

Cost: `laptop` about 2 minutes on two cores.
Expected: `laptop` ends at a validation loss near 3.9 nats per token.
"""

from ml_collections import ConfigDict

from lmnoise.config import default_config, preset


def laptop() -> ConfigDict:
    """0.9M parameters, 2.0M tokens."""
    return default_config()


PRESETS = {"laptop": laptop}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
