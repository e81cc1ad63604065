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
from deltalens.io.config import layers_wanted
from deltalens.io.header import FLOATS, TensorEntry
from deltalens.io.pretrained import empty_model
from deltalens.io.reader import TensorReader, same_values, torch_dtype
from deltalens.names import is_input_embedding, is_output_embedding, may_be_output_embedding

__all__ = ["Copies", "Tying", "may_tie", "skeleton", "stored_copies", "tying_of"]

_LOOK = 32
"""Entries by which a tensor is told from the others of its shape before it is read."""


@dataclass(frozen=True)
class Tying:
    """Groups of a checkpoint's tensors that transformers fills with one set of values.

    Made by `tying_of`. Names are those that the checkpoint stores.
    """

    groups: tuple[tuple[str, ...], ...]
    """The members of each group that are stored; the one whose values count comes first."""
    _members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Live name -> the stored members of its group."""
    live: Mapping[str, str] = field(default_factory=dict)
    """Stored name -> the name in the loaded model, as far as transformers was asked."""
    known: bool = True
    """Whether the architecture is one of transformers'; else names and values have to tell."""

    def mates(self, name: str) -> tuple[str, ...]:
        """The stored tensors that a tensor of this name shares its values with; `name` need not be
        stored itself."""
        if self.known:
            return self._members.get(self.live.get(name, name), ())
        return self.groups[0] if self.groups and is_output_embedding(name) else ()


def tying_of(checkpoint: Checkpoint, like: Checkpoint | None = None) -> Tying:
    """What transformers would tie when it loads a checkpoint: by the class that the configuration
    names, that class's own rules and defaults, those of the models inside it (a text model, an
    encoder, a decoder). No weights are made. An architecture that transformers does not know (code
    of the checkpoint's own is not run) ties its output to its only input embedding, unless the
    configuration says that it does not.

    Args:
        checkpoint: what would be loaded.
        like: loaded with the class of this one, where both are of one model type.
    """
    config = dict(checkpoint.config)
    if like is not None and like.config.get("model_type") == config.get("model_type"):
        config |= {key: like.config[key] for key in ("architectures",) if key in like.config}
    names = tuple(checkpoint.tensors)
    try:
        found = _ask(json.dumps(config, sort_keys=True), names)
    except (TypeError, ValueError, RecursionError):
        found = None
    if found is None and config.get("tie_word_embeddings") is not False:
        found = _by_name(names)
    return found or Tying(())


def may_tie(config: Mapping[str, Any]) -> bool:
    """Whether it is worth asking. A plain `false` says no, but for models that have others inside,
    and for encoder-decoders: the T5 family ties whatever its configuration says."""
    inner = any(key.endswith("_config") and isinstance(config[key], dict) for key in config)
    return (
        config.get("tie_word_embeddings") is not False
        or inner
        or bool(config.get("is_encoder_decoder"))
    )


def _by_name(names: tuple[str, ...]) -> Tying:
    inputs = [name for name in names if is_input_embedding(name)]
    outputs = [name for name in names if is_output_embedding(name)]
    groups = ((inputs[0], *outputs),) if len(inputs) == 1 else ()
    return Tying(groups, known=False)


@functools.lru_cache(maxsize=8)
def _ask(config: str, names: tuple[str, ...]) -> Tying | None:
    """What transformers says; None where it does not know the architecture."""
    settings: dict[str, Any] = json.loads(config)
    if layers_wanted(settings) > len(names):
        return None  # More blocks than tensors: not this checkpoint's configuration.
    model = skeleton(settings)
    if model is None:
        return None
    live = _live_names(model, names)
    stored: dict[str, str] = {}
    for name, place in live.items():
        stored.setdefault(place, name)
    members: dict[str, tuple[str, ...]] = {}
    groups = []
    for group in _tied(model):
        there = tuple(stored[place] for place in group if place in stored)
        members |= dict.fromkeys(group, there)
        if len(there) > 1:
            groups.append(there)
    return Tying(tuple(groups), members, live)


def skeleton(settings: dict[str, Any]) -> Any | None:
    """The model of a configuration without memory for its weights; None where transformers cannot
    make it."""
    import transformers

    noise = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return empty_model(settings)
    except Exception:  # Of transformers on a configuration of any kind, which promises no kind.
        return None
    finally:
        transformers.logging.set_verbosity(noise)


def _tied(model: Any) -> list[tuple[str, ...]]:
    """Groups of live names with one set of values; whose values count, first. Where that one is not
    in a checkpoint, the next takes its place."""
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
    """What each stored name becomes on load, by transformers' own renaming."""
    from transformers import core_model_loading as loading

    try:
        from transformers.conversion_mapping import get_model_conversion_mapping

        changes = get_model_conversion_mapping(model)
        renamings = [one for one in changes if isinstance(one, loading.WeightRenaming)]
        converters = [one for one in changes if isinstance(one, loading.WeightConverter)]
        there = model.state_dict()
        return {
            name: loading.rename_source_key(
                name, renamings, converters, model.base_model_prefix, there
            )[0]
            for name in sorted(names, key=loading.dot_natural_key)
        }
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        return {name: name for name in names}


@dataclass(frozen=True)
class Copies:
    """Tensors that a checkpoint stores beside the one that it ties them to."""

    equal: Mapping[str, str]
    """With the same values: name -> the name that counts. Loaded, they are one tensor."""
    apart: Mapping[str, str]
    """With other values: name -> what the configuration ties it to. transformers then does not tie
    them: it loads both."""


def stored_copies(checkpoint: Checkpoint) -> Copies:
    """The tied tensors that a checkpoint stores more than once.

    transformers is asked (which takes seconds to import) only where two stored tensors look alike,
    or the configuration may tie an output embedding that is stored.
    """
    floats = {n: entry for n, entry in checkpoint.tensors.items() if entry.dtype in FLOATS}
    spec = may_tie(checkpoint.config) and any(may_be_output_embedding(name) for name in floats)
    if not spec and not _any_alike(floats.values()):
        return Copies({}, {})
    equal: dict[str, str] = {}
    apart: dict[str, str] = {}
    for first, *others in tying_of(checkpoint).groups:
        for name in others:
            if first in floats and name in floats:
                one, other = floats[first], floats[name]
                same = one.shape == other.shape and one.dtype == other.dtype
                (equal if same and same_values(one, other) else apart)[name] = first
    return Copies(equal, apart)


def _any_alike(entries: Iterable[TensorEntry]) -> bool:
    """Whether two tensors have the same shape, dtype, and entries in the middle."""
    kinds: dict[tuple[object, ...], list[TensorEntry]] = {}
    for entry in entries:
        kinds.setdefault((entry.shape, entry.dtype), []).append(entry)
    reader = TensorReader()
    for kind in kinds.values():
        if len(kind) > 1:
            looks = _looks(kind, reader)
            if len({look.tobytes() for look in looks}) < len(looks):
                return True
    return False


def _looks(entries: list[TensorEntry], reader: TensorReader) -> NDArray[np.signedinteger[Any]]:
    """The bits of entries in the middle of tensors of one shape and dtype, a row for each. Norms
    and biases that have not been trained are all alike: they are left out."""
    shape, numel = entries[0].shape, entries[0].numel
    count = min(_LOOK, numel)
    size = torch_dtype(entries[0]).itemsize
    pieces = [reader.piece(entry, (numel - count) // 2 * size, count * size) for entry in entries]
    bits = np.frombuffer(bytearray().join(pieces), f"<i{size}").reshape(len(entries), count)
    bits[bits == np.iinfo(bits.dtype).min] = 0  # -0 is 0.
    return bits if len(shape) > 1 else bits[(bits != bits[:, :1]).any(axis=1)]
