"""What the report of the multilingual study says of how it measured."""

from ml_collections import ConfigDict
from multilingual_probes import ARCS
from multilingual_result import Result
from multilingual_texts import tuning_split

from lmnoise.analyze.defaults import label


def scale(result: Result, config: ConfigDict) -> str:
    training = config.multilingual.training
    tokens = training.steps * training.batch_size * config.data.length
    return (
        f"Seen at this scale: {label(config.checkpoint)}, fine-tuned on {tokens:,} tokens of "
        f"{' or '.join(result.runs)} a run, {len(config.multilingual.seeds)} orders of the data. "
        "Intervals without another word are over those orders, at 95 %; the held-out text is the "
        "same in all."
    )


def epochs(result: Result, config: ConfigDict) -> str:
    """How much of the training text a run reads."""
    training = config.multilingual.training
    tokens = training.steps * training.batch_size * config.data.length
    parts = [
        f"{tokens / runs[0]['train_tokens']:.3g} for {language}, {kind}"
        for language, kinds in result.runs.items()
        for kind, runs in kinds.items()
    ]
    return f"Epochs of the training text that a run takes: {', '.join(parts)}."


def rates(result: Result, config: ConfigDict) -> str:
    section = config.multilingual
    parts = [
        f"{runs[0]['learning_rate']:g} for {language}, {kind}"
        for language, kinds in result.runs.items()
        for kind, runs in kinds.items()
    ]
    found = f"Learning rates: {', '.join(parts)}."
    if not section.extended:
        return found
    return (
        f"{found} Where vocabularies are compared, each takes the one of "
        f"{', '.join(f'{rate:g}' for rate in section.rates)} that does best on paragraphs of the "
        f"{tuning_split(config)} split, by a run of seed {section.seeds[0]} each; one rate serves "
        "all parameters, so none is tuned for the new embeddings alone."
    )


def how_similar(result: Result) -> str:
    trained = "; ".join(
        f"{count} stand in the text of {language} trained on"
        for language, count in result.trained.items()
    )
    return (
        f"{result.paragraphs} held-out paragraphs that all languages share; features are "
        "means of the residual stream over a paragraph's tokens, each about the mean of all and "
        "scaled to length 1, so that no outlying paragraph decides. CKA is linear with the "
        "unbiased estimate (arXiv 1905.00414); errors over paragraphs are by a jackknife of "
        "blocks; RSA is Spearman's correlation of cosine distances; "
        "retrieval is the share of paragraphs whose nearest neighbour says the same. The "
        "paragraphs share product names and numbers, so that layer 0, the embeddings alone, is "
        "the baseline, not zero."
        f"{f' Of the paragraphs {trained}.' if trained else ''}"
    )


def how_heads(result: Result, config: ConfigDict) -> str:
    arcs = [name for name in result.before["heads"] if name in ARCS]
    counts = ", ".join(
        f"{name} {of['queries']:,.0f}" for name, of in result.before["heads"].items()
    )
    return (
        f"On up to {config.multilingual.sentences} sentences of {config.multilingual.treebank}; "
        f"queries: {counts}. Heads are causal, so no head sees the word to come, and a word's "
        "syntactic head only where it comes before; where it comes after, the head sees its "
        f"dependent{'' if arcs else ' (here no arc had a control)'}. Each arc is held "
        "against pairs of words that no arc links, at the same distance in tokens and to words as "
        "long."
    )
