"""Mask Fine-Tuning: which weights of a finished model are better removed."""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from deltalens.errors import DeltaLensError, fault_list
from deltalens.gradients.hooks import StepCall, unwatch, watch
from deltalens.methods.mask_layers import (
    MODULES,
    Blocks,
    Layer,
    choose_layers,
)
from deltalens.methods.mask_ratios import Ratios, describe_ratios, ratios_of
from deltalens.methods.mask_scores import (
    LayerScores,
    Rule,
    attach_scores,
    check_init_std,
    original_weight,
    select_together,
)
from deltalens.methods.weight_masks import WeightMask, WeightMasks
from deltalens.numerics import straight_through
from deltalens.numerics.hashing import name_key
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import compile_keep_loops

__all__ = ["MaskTuning"]

RankBy = Literal["magnitude", "value"]
_TENTH = Fraction(1, 10)


class MaskTuning:
    """Mask Fine-Tuning (arXiv 2503.22764) for any trainer.

    From here on the chosen linear layers compute with weight * mask, all of the model's own
    parameters are frozen, and the scores, one a weight, are what any optimizer trains: they are
    ordinary parameters of the model. Make it before the optimizer, and before the model is wrapped
    (DDP), sharded (FSDP2) or compiled. It ends with `merge` or `detach`; until then a checkpoint of
    the model holds masked weights, with the scores beside them.

    In a step, per layer: the lowest scores' weights are removed (Eq. 4), and the scores' gradient
    is W * dL/dW' for all of them, times sign(s) where they are ranked by magnitude (Eq. 5). The
    mask is selected once per change of the scores.

    Args:
        model: finished; its weights are floats.
        blocks, modules, include: which linear layers, as in `mask_layers.choose_layers`.
        mask_ratio: the fraction of each layer's weights that is removed: exactly
            round(mask_ratio * n); in (0, 1), one for all, or by kind, projection and block:
            {"": "0.1", "q": "0.2", "4-7.down": "0.05"}, as in `mask_ratios.ratios_of`.
        threshold: instead of a ratio: weights stay whose score is greater (the paper's global run:
            -0.035).
        rank_by: `magnitude` of the scores, or their `value`; a threshold is always of the value.
        init_std: the scores begin as N(0, init_std).
        seed: of the scores' start, and of the order among ties.

    Raises:
        DeltaLensError: bad arguments, before anything is changed.

    Memory: the frozen weights, a masked copy of those that are masked, one bit an entry.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Blocks = "all",
        modules: Iterable[str] = MODULES,
        include: str | None = None,
        mask_ratio: Ratios = _TENTH,
        threshold: float | None = None,
        rank_by: str = "magnitude",
        init_std: float = 0.02,
        seed: int = 0,
    ) -> None:
        if rank_by not in get_args(RankBy):
            raise DeltaLensError(
                f"rank_by={rank_by!r}: choose one of {', '.join(get_args(RankBy))}"
            )
        if threshold is not None and mask_ratio is not _TENTH:
            raise DeltaLensError(
                f"mask_ratio={mask_ratio} and threshold={threshold} are both given; choose one"
            )
        if threshold is not None and not math.isfinite(threshold):
            raise DeltaLensError(f"threshold={threshold}: must be finite")
        check_init_std(init_std)
        layers = choose_layers(model, blocks, modules, include)
        ratios = ratios_of(mask_ratio, layers)
        self._model = model
        rule = {"mask_ratio": describe_ratios(mask_ratio, layers), "rank_by": rank_by}
        self._about: dict[str, Any] = {
            "method": "mft",
            **(rule if threshold is None else {"threshold": threshold}),
            "init_std": init_std,
            "seed": seed,
        }
        self._layers: dict[str, tuple[Layer, LayerScores]] = {}
        for layer in layers:
            name = layer.weight_name
            removed = None if threshold is not None else round(ratios[layer.name] * layer.entries)
            rule_ = Rule(name, removed, threshold or 0.0, rank_by == "value", name_key(seed, name))
            self._layers[layer.name] = layer, LayerScores(layer, rule_, init_std, seed)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._detachers: list[Callable[[], None]] = []
        self._handles: list[_ChangedScores | RemovableHandle] = []
        self._attach()

    def _attach(self) -> None:
        for layer, scores in self._layers.values():
            weight = layer.module.get_parameter("weight")
            if weight.device.type == "cpu":
                # First: where a loop cannot be compiled, the model stays as it is.
                compile_keep_loops(scores.scores.dtype)
                straight_through.compile_loops(weight.dtype)
        for parameter in self._trained:
            parameter.requires_grad_(False)
        for layer, scores in self._layers.values():
            self._detachers.append(attach_scores(layer, scores))
        self._handles = [
            _ChangedScores(scores for _, scores in self._layers.values()),
            *_let_gradients_in(self._model),
        ]
        for handle in self._handles:
            # Some hooks are in torch, not in the model: they go with it.
            weakref.finalize(self._model, handle.remove)

    @property
    def active(self) -> bool:
        """Whether the model is masked: from the start to `merge` or `detach`."""
        return bool(self._layers)

    @property
    def layers(self) -> list[str]:
        """Names of the masked layers."""
        return list(self._layers)

    def parameters(self) -> list[nn.Parameter]:
        """The scores: what an optimizer is to train."""
        return [scores.scores for _, scores in self._active().values()]

    def packed_masks(self) -> dict[str, PackedMask]:
        """Layer -> mask of the flat weight, as the scores are now. Read only; the masks of a later
        step are others. Under FSDP2 all processes have to ask, and have the same."""
        found = {name: scores.kept() for name, (_, scores) in self._active().items()}
        empty = [name for name, kept in found.items() if kept.size and not int(kept.count())]
        if empty:
            warnings.warn(fault_list("the mask removes every weight of", empty), stacklevel=2)
        return found

    def weight_masks(self) -> WeightMasks:
        """The masks as they are now, to be saved or applied."""
        made = [
            WeightMask(layer, original_weight(layer), kept)
            for (layer, _), kept in zip(
                self._active().values(), self.packed_masks().values(), strict=True
            )
        ]
        return WeightMasks(tuple(made), self._about)

    def masks(self) -> dict[str, Tensor]:
        """Layer -> mask as the scores are now: bool, of the weight's shape, true where kept."""
        return self.weight_masks().masks()

    def mask_ratio_by_layer(self) -> dict[str, float]:
        """Layer -> share of its weights that is removed."""
        return self.weight_masks().mask_ratio_by_layer()

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit a weight; `apply_masks` reads it.

        Of several processes the first writes; under FSDP2 all have to call.

        Raises:
            DeltaLensError: it cannot be written, or the masks are gone (after `merge`, `detach`).
        """
        self.weight_masks().save(path)

    def merge(self) -> nn.Module:
        """Remove the weights for good: exact zeros in an ordinary model, without scores, trainable
        as before. The model, for convenience.

        Raises:
            DeltaLensError: the masks are gone already, or the model is sharded.
        """
        masks = self.weight_masks()
        self.detach()
        masks.merge()
        return self._model

    def detach(self) -> None:
        """Give the model its own weights back, bit for bit, trainable as before; the scores go.

        Raises:
            DeltaLensError: the model is sharded.
        """
        if any(isinstance(original_weight(layer), DTensor) for layer, _ in self._layers.values()):
            raise DeltaLensError(
                "the model is sharded, and FSDP2 would go on gathering parameters that are gone: "
                "save the masks and apply them to the whole model (apply_masks), or take the "
                "masked weights from get_model_state_dict"
            )
        for handle in self._handles:
            handle.remove()
        for detach in self._detachers:
            detach()
        self._layers, self._detachers = {}, []
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._trained = []

    def _active(self) -> dict[str, tuple[Layer, LayerScores]]:
        if not self._layers:
            raise DeltaLensError("the masks are gone: the model was merged, or they were detached")
        return self._layers


class _ChangedScores:
    """Notices every optimizer step over some scores: a sharded parameter, or one that is written
    through `.data`, shows no other trace in the layer. The new masks are selected at once, layers
    side by side; from scores as they are once masks of the step have put theirs back."""

    late: ClassVar[bool] = True

    def __init__(self, scores: Iterable[LayerScores]) -> None:
        self._watched = weakref.WeakSet(scores)
        watch(self)

    def begins(self, running: StepCall) -> None:
        """Nothing has changed."""

    def computed(self, running: StepCall) -> None:
        """Nothing has changed."""

    def ended(self, running: StepCall) -> None:
        """Some may have changed."""
        stepped = [p for group in running.optimizer.param_groups for p in group["params"]]
        ids = {id(parameter) for parameter in stepped}
        sharded = any(isinstance(parameter, DTensor) for parameter in stepped)
        changed = [one for one in self._watched if sharded or id(one.scores) in ids]
        for scores in changed:
            scores.stale = True
        select_together(changed)

    def remove(self) -> None:
        """No longer."""
        unwatch(self)


def _let_gradients_in(model: nn.Module) -> list[RemovableHandle]:
    """Reentrant checkpointing gives gradients to nothing inside a block whose input needs none, and
    behind a frozen embedding none does: its output is made to."""
    embedding_of: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    try:
        embedding = embedding_of() if embedding_of is not None else None
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Module):
        return []
    modules = weakref.ref(model)

    def let_in(module: nn.Module, args: Any, output: Any) -> None:
        whole = modules()
        if (
            isinstance(output, Tensor)
            and torch.is_grad_enabled()
            and not output.requires_grad
            and whole is not None
            and any(map(_is_reentrant, whole.modules()))
        ):
            output.requires_grad_(True)

    return [embedding.register_forward_hook(let_in)]


def _is_reentrant(module: nn.Module) -> bool:
    how = getattr(module, "_gradient_checkpointing_func", None)
    return (
        bool(getattr(module, "gradient_checkpointing", False))
        and isinstance(how, functools.partial)
        and bool(how.keywords.get("use_reentrant", False))
    )
