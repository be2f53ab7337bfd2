"""Does longer pre-training make a language model harder to fine-tune? (arXiv 2503.19206)

Command:
    python experiments/overtraining.py --config=configs/overtraining.py:laptop \\
        --workdir=runs/overtraining

Cost: `laptop` 15 minutes of CPU time, mostly of one core (24 minutes while two other studies ran),
`demo` less than half of it. `gpu_*` and `pod_*` have not been run.
Expected of `laptop`: the rise of the loss through noise grows with the tokens at every strength,
by 0.02 (γ = 0.5) to 1.2 nats (γ = 8) a doubling. At γ = 0.5 the loss after noise falls all the
same; it turns up from 1.2M tokens at γ = 2 and from 0.3M at γ = 4 and 8, of 9.4M, and ends worse
than the frequencies of tokens alone: all is forgotten. Fine-tuned on German the loss on the reviews
turns up from 1.2M tokens at the rate 8e-3 and from 0.6M at 3.2e-2, and all is forgotten in the end
at both and at the tuned rate, where the loss shows no trend: its rise, 0.24 nats a doubling, says
only that a better start has more to lose. Decay to the start and replay let the loss turn up later
or not at all in range, at the largest budget take 0.43 and 0.98 nats off it, and cost 0.09 nats on
German, whose own loss falls with every budget. SAM at 0.05 delays nothing that shows. Topics (r8)
are hardly learned at this size.

The budgets are the shares `members.duration` of `train.steps`, each a run of its own that is
annealed to zero; `one_run` is one more run whose checkpoints are measured in the same way.
"""

import functools

from ml_collections import ConfigDict

from lmnoise.config import default_config, preset


def _shares(count: int) -> tuple[float, ...]:
    """Powers of two up to 1."""
    return tuple(2.0**-k for k in reversed(range(count)))


def laptop() -> ConfigDict:
    """9,312 parameters, 16 to 1,013 bytes of film reviews a parameter, four seeds."""
    config = default_config()
    config.data.update(
        dict(source="imdb", tokenizer="bytes", length=64, evaluate=("imdb",), evaluate_windows=128)
    )
    config.model.update(dict(family="llama", layers=2, width=16, heads=1, mlp_width=32))
    config.members.update(dict(seed=(0, 1, 2, 3), duration=_shares(7), learning_rate=(4e-3,)))
    config.optimizer.final_fraction = 0.0
    config.train.update(dict(steps=4608, batch_size=32, log_every=512, checkpoint_every=1152))
    config.train.steps_per_dispatch = 16
    with config.unlocked():
        # Checkpoints of one run: at the budgets from this share of its steps on.
        config.one_run = dict(schedule="constant", first=1 / 32)
        config.perturb = dict(
            unit="init_std",
            gammas=(0.5, 1.0, 2.0, 4.0, 8.0),
            seeds=(0, 1, 2, 3),
            windows=128,  # of held-out pre-training text, also for fine-tuning; 0 for all
        )
        config.tune = dict(
            tasks=("text:libreoffice_help/de", "labels:r8"),
            train_rows=512,
            heldout_rows=256,
            epochs=2.0,
            batch_size=16,
            rates=(2e-3, 8e-3, 3.2e-2, 1.28e-1),
            seed=0,
            # Strengths; a cure with none is left out.
            cures=dict(decay_to_start=(10.0,), sam_radius=(0.05,), replay=(0.5,)),
        )
        # The two-layer linear network that is drawn beside the measurements.
        config.linear = dict(
            dimension=32, largest=8.0, decay=1.0, start=1e-6, scales=(0.05, 0.1, 0.15, 0.2, 0.25)
        )
    return config


def demo() -> ConfigDict:
    """The same model, half of the tokens, one task; two seeds, which compare no inflections."""
    config = laptop()
    config.members.update(dict(seed=(0, 1), duration=_shares(6)))
    config.train.update(dict(steps=2304, log_every=256, checkpoint_every=1152))
    config.one_run.first = 1 / 8
    config.tune.update(dict(tasks=("text:libreoffice_help/de",), rates=(8e-3, 3.2e-2, 1.28e-1)))
    return config


def _large(source: str, layers: int, width: int) -> ConfigDict:
    """A Llama with the tokens of GPT-2."""
    config = laptop()
    config.data.update(dict(tokenizer="gpt2", length=1024, evaluate_windows=2048))
    config.data.update(dict(source=source, evaluate=(source,)))
    config.model.update(
        dict(layers=layers, width=width, heads=width // 64, mlp_width=4 * width, dtype="bfloat16",
             vocab_size=50_304)
    )  # fmt: skip
    config.members.update(dict(learning_rate=(2e-3,)))
    config.optimizer.warmup_fraction = 0.05
    config.train.log_every = 64
    config.perturb.update(dict(gammas=(0.1, 0.2, 0.5, 1.0, 2.0), windows=1024))
    config.tune.update(
        dict(
            tasks=("text:libreoffice_help/de", "text:stdlib_code", "labels:imdb"),
            train_rows=16_384,
            heldout_rows=2048,
            batch_size=64,
            rates=(1e-5, 4e-5, 1e-4, 4e-4, 1e-3),
            cures=dict(decay_to_start=(1.0, 10.0), sam_radius=(0.05,), replay=(0.1, 0.5)),
        )
    )
    return config


def gpu(layers: int, width: int) -> ConfigDict:
    """0.13 to 4.3 billion tokens in six budgets, three seeds, half a million tokens a step.

    Of English Wikipedia, which is prepared whole (some 10 GB of text) and has about half as many
    tokens as the largest budget reads; the report says how often it is read. The corpora that
    install with pip have some ten million tokens, over which the budgets would be up to hundreds of
    epochs and measure that instead.
    """
    config = _large("tfds:wiki40b/en", layers, width)
    config.members.update(dict(seed=(0, 1, 2), duration=_shares(6)))
    config.train.update(dict(steps=8192, batch_size=512, accumulate=8, checkpoint_every=1024))
    return config


def pod(layers: int, width: int) -> ConfigDict:
    """The paper's budgets, 4 to 137 billion tokens of C4, for three seeds.

    C4 is prepared whole, 0.3 TB of text and as much again of tokens: do so first, on a shared disk,
        python -m lmnoise.data prepare tfds:c4/en --tokenizer=gpt2
    Several processes pre-train as one; the same command as one process then measures.
    """
    config = _large("tfds:c4/en", layers, width)
    config.members.update(dict(seed=(0, 1, 2), duration=_shares(6)))
    config.train.update(dict(steps=131_072, batch_size=1024, checkpoint_every=4096))
    return config


# Makes every preset run in seconds, for the tests.
SMALL = dict(
    data=dict(tokenizer="bytes", length=16, evaluate_windows=8),
    model=dict(layers=1, width=16, heads=2, kv_heads=0, mlp_width=32, vocab_size=0,
               dtype="float32"),
    members=dict(seed=(0, 1), duration=(0.25, 0.5, 1.0)),
    train=dict(steps=16, batch_size=8, accumulate=1, log_every=4, checkpoint_every=8,
               steps_per_dispatch=4),
    one_run=dict(first=0.25),
    perturb=dict(gammas=(1.0, 4.0), seeds=(0, 1), windows=8),
    tune=dict(train_rows=8, heldout_rows=8, epochs=1.0, batch_size=4, rates=(1e-3, 1e-2),
              cures=dict(decay_to_start=(), sam_radius=(), replay=(0.5,))),
)  # fmt: skip

SIZES = {"15m": (9, 192), "30m": (5, 384), "90m": (12, 576)}
PRESETS = {
    "demo": demo,
    "laptop": laptop,
    **{f"gpu_{n}": functools.partial(gpu, *SIZES[n]) for n in ("15m", "30m")},
    **{f"pod_{n}": functools.partial(pod, *size) for n, size in SIZES.items()},
}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
