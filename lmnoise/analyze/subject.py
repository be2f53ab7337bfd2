"""A checkpoint on the bench: its parameters on the devices, held-out text, and stored results."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lmnoise import points
from lmnoise.analyze.checks import check
from lmnoise.analyze.defaults import label
from lmnoise.checkpoints import Checkpoint, open_checkpoint
from lmnoise.data.packing import Packed, open_packed, prepare
from lmnoise.data.stream import evaluation_batches
from lmnoise.data.tokenizer import Tokenizer, load_tokenizer
from lmnoise.errors import UserError
from lmnoise.evaluation import variants
from lmnoise.evaluation.generation import generate_variants
from lmnoise.evaluation.language import Source, Sums, paired, summarise
from lmnoise.models.transformer import LanguageModel
from lmnoise.report import Estimate, mean_and_error
from lmnoise.training import mesh as meshes

type Change = Callable[[Any, Any, Any], Any]
type Result = dict[str, Any]


def unchanged(params: Any, member: Any, extra: Any) -> Any:
    """The variant that is the checkpoint itself."""
    del member, extra
    return params


@dataclasses.dataclass(frozen=True)
class Subject:
    """One checkpoint, ready to be measured.

    Attributes:
      checkpoint: as opened; its `params` stay on the host.
      model: the checkpoint's, with the numerics of the config.
      params: on the devices of `mesh`, sharded over its axis `model`.
      sources: held-out text under the checkpoint's tokenizer.
      tokenizer: the checkpoint's.
      identity: what every stored result depends on besides its own setting.
      workdir: folder of the stored results.
      programs: what an analysis compiled for one checkpoint of a series, for those after it.
    """

    checkpoint: Checkpoint
    model: LanguageModel
    params: Any
    sources: list[Source]
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    identity: dict[str, Any]
    workdir: Path
    data: ConfigDict
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    def compute(
        self, settings: Sequence[Result], work: Callable[[Result], Result], title: str
    ) -> list[Result]:
        """`lmnoise.points.compute` for this checkpoint: known results are not computed again."""

        def own(setting: Result) -> Result:
            return work({key: setting[key] for key in setting if key not in self.identity})

        whole = [self.identity | setting for setting in settings]
        return points.compute(self.workdir, whole, own, f"{self.name}: {title}")

    def evaluator(self, change: Change) -> Callable[..., Result]:
        """`evaluate(members, extra=None)`: sums of the variants, as `stored` wants them."""
        evaluate = variants.evaluator(change, self.model.loss, self.sources, mesh=self.mesh)
        return lambda members, extra=None: to_json(evaluate(self.params, members, extra))

    def baseline(self) -> dict[str, Sums]:
        """Sums of the checkpoint as it is, one member."""
        [result] = self.compute(
            [{"what": "baseline"}],
            lambda _: self.evaluator(unchanged)({"nothing": np.zeros(1)}),
            "as it is",
        )
        return self.sums(result)

    def sums(self, result: Result) -> dict[str, Sums]:
        """The sums of a stored result, by source."""
        return {
            source.name: Sums(
                np.asarray(result[source.name]["losses"], np.float64),
                np.asarray(result[source.name]["counts"], np.float64),
                source.bytes_per_token[result[source.name]["documents"]],
            )
            for source in self.sources
        }

    def placed(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, jax.Array]]:
        """The same batches on the devices, their rows over the mesh axis `data`."""
        for batch in batches:
            yield {
                name: meshes.put_whole(self.mesh, leaf, batch_axis=0)
                for name, leaf in batch.items()
            }

    def packed(self, name: str, split: str) -> Packed:
        """A corpus under the checkpoint's tokenizer."""
        return open_packed(
            name,
            split,
            data_dir=self.data.data_dir,
            tokenizer=self.checkpoint.tokenizer,
            bos_id=self.checkpoint.bos_id,
        )

    def continuations(
        self, config: ConfigDict, change: Change, members: Any, extra: Any = None
    ) -> list[list[str]]:
        """Greedy continuations of the config's prompts by every variant."""
        front = [] if self.checkpoint.bos_id is None else [self.checkpoint.bos_id]
        prompts = [front + self.tokenizer.encode(prompt) for prompt in config.prompts]
        found = generate_variants(
            self.model, self.params, prompts, config.new_tokens, change, members, extra
        )
        return [[self.tokenizer.decode(ids) for ids in of_variant] for of_variant in found]


def to_json(sums: dict[str, Sums]) -> Result:
    """Sums over the documents that were read, as JSON keeps them."""
    found = {}
    for name, (losses_MD, counts_D, _) in sums.items():
        seen_D = np.flatnonzero(counts_D)
        found[name] = {
            "losses": losses_MD[:, seen_D].tolist(),
            "counts": counts_D[seen_D].tolist(),
            "documents": seen_D.tolist(),
        }
    return found


def rises(sums: dict[str, Sums], baseline: dict[str, Sums]) -> dict[str, list[Estimate]]:
    """For every source and member the rise of the loss over documents, nats per token."""
    return {
        name: [
            Estimate(*paired(losses_D, baseline[name].losses_MD[0], counts_D), len(counts_D))
            for losses_D in of_source
        ]
        for name, (of_source, counts_D, _) in sums.items()
    }


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several seeds with its error over seeds; a single one stays over documents."""
    if len(estimates) == 1:
        return estimates[0]
    return mean_and_error([estimate.mean for estimate in estimates])


def metrics(sums: dict[str, Sums]) -> dict[str, dict[str, np.ndarray]]:
    """`lmnoise.evaluation.language.summarise` of every source."""
    return {name: summarise(*of_source) for name, of_source in sums.items()}


def open_subject(
    spec: str, config: ConfigDict, names: Sequence[str], windows: int, workdir: Path
) -> Subject:
    """Opens a checkpoint and prepares its text.

    Args:
      spec: what `lmnoise.checkpoints.open_checkpoint` takes.
      config: of the analysis, see `configs/analyze.py`.
      names: corpora whose held-out text is scored.
      windows: of each corpus; 0 for all.
      workdir: folder of the stored results.

    Raises:
      UserError: the checkpoint or a corpus cannot be opened, or a key has no sensible value.
    """
    check(config)
    checkpoint = open_checkpoint(spec, config.data.data_dir)
    return subject_of(checkpoint, config, names, windows, workdir)


def subject_of(
    checkpoint: Checkpoint, config: ConfigDict, names: Sequence[str], windows: int, workdir: Path
) -> Subject:
    """`open_subject` for a checkpoint that is open already, or was made from another."""
    data = config.data
    if not 1 <= data.length <= checkpoint.model.config.context:
        raise UserError(
            f"config.data.length is {data.length}, but {checkpoint.name} has a context of "
            f"{checkpoint.model.config.context} tokens: set it to at most that"
        )
    prepare_all(names, checkpoint, data)
    mesh = meshes.make_mesh(**config.mesh)
    meshes.check_divisible(mesh, members=mesh.shape["member"], batch_size=data.batch_size)
    model = LanguageModel(
        dataclasses.replace(
            checkpoint.model.config,
            dtype=config.model.dtype,
            logits_chunk=config.model.logits_chunk,
        )
    )
    params = jax.device_put(checkpoint.params, meshes.parameter_shardings(mesh, checkpoint.params))
    sources, digests = _sources(names, checkpoint, data, windows)
    identity = {
        "checkpoint": checkpoint.fingerprint,
        "dtype": config.model.dtype,
        "length": data.length,
        "split": data.split,
        "windows": windows,
        "text": digests,
    }
    if checkpoint.bos_id is not None:
        identity["bos"] = checkpoint.bos_id
    tokenizer = load_tokenizer(checkpoint.tokenizer, data.data_dir)
    _check_prompts(config.continuation, tokenizer, checkpoint)
    return Subject(checkpoint, model, params, sources, tokenizer, mesh, identity, workdir, data)


def _check_prompts(section: ConfigDict, tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    context = checkpoint.model.config.context - (checkpoint.bos_id is not None)
    for prompt in section.prompts:
        tokens = len(tokenizer.encode(prompt))
        if not 0 < tokens <= context - section.new_tokens:
            raise UserError(
                f"config.continuation.prompts has {prompt!r} of {tokens} tokens; with "
                f"{section.new_tokens} new ones it must have 1 to {context - section.new_tokens} "
                f"for the context of {checkpoint.name}"
            )


def prepare_all(names: Sequence[str], checkpoint: Checkpoint, data: ConfigDict) -> None:
    """Prepares every corpus under the checkpoint's tokenizer, if that has not been done."""
    for name in dict.fromkeys(names):
        prepare(name, data_dir=data.data_dir, tokenizer=checkpoint.tokenizer)


def _sources(
    names: Sequence[str], checkpoint: Checkpoint, data: ConfigDict, windows: int
) -> tuple[list[Source], dict[str, str]]:
    """The held-out text, and a SHA-256 of each."""
    sources, digests = [], {}
    for name in names:
        packed = open_packed(
            name,
            data.split,
            data_dir=data.data_dir,
            tokenizer=checkpoint.tokenizer,
            bos_id=checkpoint.bos_id,
        )
        read = list(evaluation_batches(packed, data.length, data.batch_size, windows or None))
        tokens_D = np.diff(packed.ends, prepend=0)
        sources.append(Source(label(name), read, packed.bytes / tokens_D))
        digests[label(name)] = packed.meta["splits"][data.split]["sha256"]
    return sources, digests
