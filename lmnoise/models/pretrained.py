"""Hugging Face checkpoints as parameters, by the tables of `architectures`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.models.architectures import find
from lmnoise.models.layers import Spec
from lmnoise.models.transformer import LanguageModel, TransformerConfig


def from_huggingface(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[TransformerConfig, Any]:
    """Our configuration and parameters of a Hugging Face checkpoint.

    Args:
      config: the contents of config.json.
      tensors: all tensors of the checkpoint by name, of any floating type.

    Returns:
      The configuration, and nested dicts of float32 arrays on the host in the layout that
      `LanguageModel` of this configuration wants.

    Raises:
      UserError: an architecture or option that we do not compute, a tensor that is missing,
        left over or of an unexpected shape.
    """
    name, architecture = find(config)
    ours = architecture.config(config)
    left = {
        key.removeprefix(architecture.prefix): tensor
        for key, tensor in tensors.items()
        if not key.endswith(architecture.buffers)
    }
    used = set()

    def read(path: str, spec: Spec) -> np.ndarray:
        if spec.axes[0] == "layers":
            layer = dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
            paths = [path.replace("blocks/", f"blocks/{i}/", 1) for i in range(spec.shape[0])]
            return np.stack([read(p, layer) for p in paths])
        where, key = architecture.locate(path)
        used.add(key)
        expected = where.stored_shape(spec.shape, ours)
        return where.read(_stored(left, key, expected), ours)

    params = tree.map_named(read, LanguageModel(ours).specs)
    # Some writers store the tied output matrix a second time.
    surplus = sorted(set(left) - used - ({"lm_head.weight"} if ours.tied else set()))
    if surplus:
        raise UserError(
            f"the checkpoint holds {len(surplus)} tensors that {name} with this config.json does "
            f"not have, first {surplus[0]!r}: check that config.json belongs to it"
        )
    return ours, params


def _stored(tensors: Mapping[str, np.ndarray], key: str, expected: tuple[int, ...]) -> np.ndarray:
    if key not in tensors:
        raise UserError(
            f"the checkpoint lacks the tensor {key!r}: check that all its files are there and "
            f"that config.json belongs to it"
        )
    if tensors[key].shape != expected:
        raise UserError(
            f"the tensor {key!r} has shape {tensors[key].shape}, not {expected}: check that "
            f"config.json belongs to the checkpoint"
        )
    return tensors[key]
