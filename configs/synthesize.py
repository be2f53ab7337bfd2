"""Text that a trained model writes, as a corpus of its own.

Command:
    python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/lm
    python -m lmnoise.synthesize --checkpoint=runs/lm --config=configs/synthesize.py:laptop \
        --out=runs/text
    python -m lmnoise.data prepare runs/text/ --tokenizer=bpe:1024@sotu

Cost: `laptop` 40 seconds on two quiet cores with the model of configs/lm.py. `gpu` and `pod` have
not been run; `pod` is one process a host, see tpu/.
Expected: `laptop` writes 7,932 documents, nearly all cut at 128 tokens, since few speeches end
within them. A quarter of them are read again as the very tokens that were written, and 43 hold
bytes that are no text (U+FFFD); of a model that has trained for 200 steps alone, half do. `counts`
in generator.json has the numbers.
"""

from ml_collections import ConfigDict

from lmnoise.config import preset


def laptop() -> ConfigDict:
    """A million tokens in documents that begin with a word of real text."""
    return ConfigDict(
        dict(
            data=dict(
                data_dir="data",
                prompts="sotu",  # whose train split documents begin with; "" for none
            ),
            judge="",  # a checkpoint whose loss recipe.keep looks at; "" for the generator
            recipe=dict(
                tokens=1_000_000,  # least number of tokens in the folder
                length=128,  # most tokens a document
                shortest=8,  # least tokens a document
                temperature=1.0,
                top_p=1.0,
                prompt_tokens=1,  # of real text; 0 begins at the separator of documents
                batch_size=256,
                seed=0,
                keep=1.0,  # share of a batch's documents, those with the least loss
                repetition=1.0,  # most 4-grams of a document that were there before, as a share
            ),
        )
    ).lock()


def gpu() -> ConfigDict:
    """A hundred million tokens in documents of a thousand."""
    config = laptop()
    config.recipe.update(dict(tokens=100_000_000, length=1024, shortest=32, batch_size=512))
    return config


def pod() -> ConfigDict:
    """Ten billion tokens; every process writes shards of its own."""
    config = gpu()
    config.recipe.update(dict(tokens=10_000_000_000, batch_size=2048))
    return config


PRESETS = {"laptop": laptop, "gpu": gpu, "pod": pod}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
