"""What does fine-tuning on a language do to heads, representations, vocabulary and output?

Command:
    python experiments/multilingual.py --config=configs/multilingual.py:laptop \
        --workdir=runs/multilingual-laptop

Cost of `laptop`: 13 minutes of CPU time (18 minutes on two cores while other studies ran) and 10 GB
of memory; `gpu`: an estimate, not yet run: an hour on one GPU of 80 GB.
Expected of `laptop` (SmolLM2-135M, 4-bit weights): CKA of Chinese with English is 0.5 from layer 11
on, of Korean 0.35, and both about 0 in layers 3 to 9; fine-tuning on 3,072 tokens does not change
that within the intervals. It lowers the bits per byte of Korean from 2.82 to 2.21 and of Turkish
from 3.36 to 2.67; with 256 new tokens Korean is still at 3.00. 13 of 270 heads attend to dependents
more than to unlinked words in the same place, one to heads. The code-switched share falls from 0.2
(0.5 with new tokens) to near none.
"""

from ml_collections import ConfigDict

from lmnoise.analyze.defaults import default_config
from lmnoise.config import preset

# What makes the whole study run in seconds on any small model; see
# tests/experiments/test_multilingual.py.
SMALL = dict(
    data=dict(length=64, batch_size=8),
    model=dict(dtype="float32", logits_chunk=64),
    continuation=dict(prompts=("once",), new_tokens=2),
    multilingual=dict(
        seeds=(0, 1),
        paragraphs=8,
        sentences=4,
        texts=8,
        permutations=3,
        new_tokens=8,
        training=dict(steps=2, batch_size=2, evaluate_every=1),
        generation=dict(prompts=2, new_tokens=4),
    ),
)


def laptop() -> ConfigDict:
    """SmolLM2-135M, Korean with old and new tokens, Turkish with its treebank."""
    config = default_config()
    config.data.update(dict(length=64, batch_size=8))
    with config.unlocked():
        config.checkpoint = "smollm2"  # or gemma3-270m, or any other
        config.multilingual = dict(
            languages=("libreoffice_aligned/ko", "libreoffice_help/tr"),  # each trained on alone
            extended=("libreoffice_aligned/ko",),  # also with new tokens
            new_tokens=256,
            seeds=(0, 1, 2),  # of the order of the data
            english="libreoffice_aligned/en-us",
            # Compared with English.
            aligned=("libreoffice_aligned/ko", "libreoffice_aligned/zh-cn"),
            paragraphs=48,
            permutations=20,  # of the shuffled null
            treebank="turkish_web",  # or a .conllu file
            sentences=48,
            texts=16,  # held-out paragraphs of each language whose bits are counted
            rates=(2e-4, 4e-4),  # of which each vocabulary takes the better
            generation=dict(prompts=8, new_tokens=16, temperature=1.0, top_p=0.95),
            training=dict(
                steps=12,
                batch_size=4,
                learning_rate=2e-4,  # where no vocabularies are compared
                weight_decay=0.0,
                schedule="cosine",
                seed=0,
                evaluate_every=6,
                checkpoint_every=12,  # a run that is killed is short enough to begin again
            ),
        )  # fmt: skip
    return config


def gpu() -> ConfigDict:
    """Longer windows, hundreds of steps (some three epochs), more new tokens, more text."""
    config = laptop()
    config.data.update(dict(length=256, batch_size=32))
    config.model.update(dict(dtype="bfloat16", logits_chunk=8192))
    config.multilingual.update(
        dict(new_tokens=4000, seeds=(0, 1, 2, 3, 4), paragraphs=400, permutations=100,
             sentences=1000, texts=200, rates=(5e-5, 2e-4, 8e-4))
    )  # fmt: skip
    config.multilingual.training.update(
        dict(steps=400, batch_size=32, evaluate_every=50, checkpoint_every=100)
    )
    config.multilingual.generation.update(dict(prompts=64, new_tokens=64))
    return config


PRESETS = {"laptop": laptop, "gpu": gpu}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
