"""Which tensors of a checkpoint share their values once transformers has loaded it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.config import configured_layers
from deltalens.io.header import FLOATS, TensorEntry
from deltalens.io.pretrained import empty_model
from deltalens.io.reader import TensorReader, same_values, torch_dtype
from deltalens.names import is_input_embedding, is_output_embedding, may_be_output_embedding

__all__ = ["Copies", "Tying", "may_tie", "skeleton", "stored_copies", "tying_of"]

_COMPARED_ENTRIES = 32
"""Entries by which tensors of one shape are compared before they are read completely."""


@dataclass(frozen=True)
class Tying:
    """Groups of a checkpoint's tensors that share one set of values in the loaded model.

    `tying_of` determines it. Names are stored names, unless they are called live.
    """

    groups: tuple[tuple[str, ...], ...]
    """The stored members of each group; the one whose values are used comes first."""
    _members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Live name -> the stored members of its group."""
    live: Mapping[str, str] = field(default_factory=dict)
    """Stored name -> name in the loaded model; empty unless transformers has the architecture."""
    known: bool = True
    """Whether transformers has the architecture. If not, only names and values are compared."""

    def mates(self, name: str) -> tuple[str, ...]:
        """List the stored tensors that share their values with a tensor.

        Args:
            name: a tensor's name, which need not be stored.

        Returns:
            The stored names of its group; () if it is in none.
        """
        if self.known:
            return self._members.get(self.live.get(name, name), ())
        return self.groups[0] if self.groups and is_output_embedding(name) else ()


def tying_of(checkpoint: Checkpoint, like: Checkpoint | None = None) -> Tying:
    """Determine which tensors transformers ties when it loads a checkpoint.

    The class that the configuration names decides, by its rules and defaults and those of the
    models inside it (a text model, an encoder, a decoder). No weights are allocated. Code that is
    stored with the checkpoint is not run: if transformers does not have the architecture, output
    embeddings are taken to be tied to the input embedding, if there is exactly one and the
    configuration does not say otherwise.

    Args:
        checkpoint: the checkpoint that would be loaded.
        like: if it has the same model type, the checkpoint is loaded with the class of this one.

    Returns:
        The groups of tied tensors.
    """
    config = dict(checkpoint.config)
    if like is not None and like.config.get("model_type") == config.get("model_type"):
        config |= {key: like.config[key] for key in ("architectures",) if key in like.config}
    names = tuple(checkpoint.tensors)
    try:
        tying = _by_architecture(json.dumps(config, sort_keys=True), names)
    except (TypeError, ValueError, RecursionError):
        tying = None
    if tying is None and config.get("tie_word_embeddings") is not False:
        tying = _by_name(names)
    return tying or Tying(())


def may_tie(config: Mapping[str, Any]) -> bool:
    """Tell whether a model with this configuration may have tied tensors, before building it.

    Args:
        config: the content of `config.json`.

    Returns:
        False only if `tie_word_embeddings` is false, the model contains no others, and it is not an
        encoder-decoder: the T5 family ties whatever its configuration says.
    """
    has_inner_models = any(
        key.endswith("_config") and isinstance(config[key], dict) for key in config
    )
    return (
        config.get("tie_word_embeddings") is not False
        or has_inner_models
        or bool(config.get("is_encoder_decoder"))
    )


def _by_name(names: tuple[str, ...]) -> Tying:
    inputs = [name for name in names if is_input_embedding(name)]
    outputs = [name for name in names if is_output_embedding(name)]
    groups = ((inputs[0], *outputs),) if len(inputs) == 1 else ()
    return Tying(groups, known=False)


@functools.lru_cache(maxsize=8)
def _by_architecture(config: str, names: tuple[str, ...]) -> Tying | None:
    """The tying according to transformers; None if it does not have the architecture."""
    settings: dict[str, Any] = json.loads(config)
    if configured_layers(settings) > len(names):
        return None  # More blocks than tensors: the configuration is not this checkpoint's.
    model = skeleton(settings)
    if model is None:
        return None
    live = _live_names(model, names)
    stored: dict[str, str] = {}
    for name, live_name in live.items():
        stored.setdefault(live_name, name)
    members: dict[str, tuple[str, ...]] = {}
    groups = []
    for group in _tied(model):
        stored_group = tuple(stored[live_name] for live_name in group if live_name in stored)
        members |= dict.fromkeys(group, stored_group)
        if len(stored_group) > 1:
            groups.append(stored_group)
    return Tying(tuple(groups), members, live)


def skeleton(settings: dict[str, Any]) -> Any | None:
    """Build the model that a configuration describes, without memory for its weights.

    Args:
        settings: the content of `config.json`.

    Returns:
        The model, on torch's meta device; None if transformers cannot build it.
    """
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return empty_model(settings)
    except Exception:  # transformers raises all kinds on an arbitrary configuration.
        return None
    finally:
        transformers.logging.set_verbosity(verbosity)


def _tied(model: Any) -> list[tuple[str, ...]]:
    """Groups of live names with one set of values. The one whose values are used comes first; if a
    checkpoint does not store it, the next one's are."""
    groups: dict[str, list[str]] = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        groups.setdefault(source, [source]).append(target)
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    grouped = {name for group in groups.values() for name in group}
    for names in same.values():
        if len(names) > 1 and not grouped & set(names):
            groups[names[0]] = names
    return [tuple(dict.fromkeys(group)) for group in groups.values()]


def _live_names(model: Any, names: tuple[str, ...]) -> dict[str, str]:
    """The name of each stored tensor in the loaded model, according to transformers' renaming."""
    from transformers import core_model_loading as loading

    try:
        from transformers.conversion_mapping import get_model_conversion_mapping

        changes = get_model_conversion_mapping(model)
        renamings = [change for change in changes if isinstance(change, loading.WeightRenaming)]
        converters = [change for change in changes if isinstance(change, loading.WeightConverter)]
        state = model.state_dict()
        return {
            name: loading.rename_source_key(
                name, renamings, converters, model.base_model_prefix, state
            )[0]
            for name in sorted(names, key=loading.dot_natural_key)
        }
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        return {name: name for name in names}


@dataclass(frozen=True)
class Copies:
    """Tensors that a checkpoint stores in addition to the tensor that they are tied to."""

    equal: Mapping[str, str]
    """Copies with the same values: name -> name of the tensor that is counted. Loaded, they are one
    tensor."""
    apart: Mapping[str, str]
    """Tensors with different values: name -> name of the tensor that the configuration ties it to.
    transformers does not tie these, and loads both."""


def stored_copies(checkpoint: Checkpoint) -> Copies:
    """Find the tied tensors that a checkpoint stores more than once.

    transformers (which takes seconds to import) is used only if two stored tensors look alike, or
    if the configuration may tie an output embedding that is stored.

    Args:
        checkpoint: the checkpoint; the tensors in question are read.

    Returns:
        The copies, and the tensors that should be copies and are not.

    Raises:
        CheckpointError: a file cannot be read.
    """
    floats = {n: entry for n, entry in checkpoint.tensors.items() if entry.dtype in FLOATS}
    stores_output = any(may_be_output_embedding(name) for name in floats)
    if not (may_tie(checkpoint.config) and stores_output) and not _any_alike(floats.values()):
        return Copies({}, {})
    equal: dict[str, str] = {}
    apart: dict[str, str] = {}
    for first, *others in tying_of(checkpoint).groups:
        for name in others:
            if first in floats and name in floats:
                source, copy = floats[first], floats[name]
                same_kind = source.shape == copy.shape and source.dtype == copy.dtype
                (equal if same_kind and same_values(source, copy) else apart)[name] = first
    return Copies(equal, apart)


def _any_alike(entries: Iterable[TensorEntry]) -> bool:
    """Whether two tensors have the same shape, dtype, and entries in the middle."""
    kinds: dict[tuple[object, ...], list[TensorEntry]] = {}
    for entry in entries:
        kinds.setdefault((entry.shape, entry.dtype), []).append(entry)
    reader = TensorReader()
    for kind in kinds.values():
        if len(kind) > 1:
            samples = _middle_entries(kind, reader)
            if len({sample.tobytes() for sample in samples}) < len(samples):
                return True
    return False


def _middle_entries(
    entries: list[TensorEntry], reader: TensorReader
) -> NDArray[np.signedinteger[Any]]:
    """The bits of the middle entries of tensors of one shape and dtype, one row per tensor.
    Constant vectors are left out: untrained norms and biases are all alike."""
    shape, numel = entries[0].shape, entries[0].numel
    count = min(_COMPARED_ENTRIES, numel)
    size = torch_dtype(entries[0]).itemsize
    start = (numel - count) // 2 * size
    pieces = [reader.read_bytes(entry, start, count * size) for entry in entries]
    bits = np.frombuffer(bytearray().join(pieces), f"<i{size}").reshape(len(entries), count)
    bits[bits == np.iinfo(bits.dtype).min] = 0  # -0 equals 0.
    return bits if len(shape) > 1 else bits[(bits != bits[:, :1]).any(axis=1)]
