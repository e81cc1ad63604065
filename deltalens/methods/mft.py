"""Mask Fine-Tuning: learn which weights of a finished model are better removed."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from deltalens.errors import DeltaLensError, fault_list
from deltalens.gradients.hooks import StepCall, unwatch, watch
from deltalens.methods.frozen import let_gradients_in
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
"""What the scores are ranked by."""
_TENTH = Fraction(1, 10)


class MaskTuning:
    """Mask Fine-Tuning (arXiv 2503.22764) for any trainer.

    Once the object exists, the chosen linear layers compute with weight * mask, all parameters of
    the model itself are frozen, and the scores, one per weight, are ordinary parameters of the
    model for any optimizer to train. Make the object before the optimizer, and before the model is
    wrapped (DDP), sharded (FSDP2) or compiled. End with `merge` or `detach`. Until then, a
    checkpoint of the model holds the masked weights, and the scores beside them.

    In each step and layer, the weights with the lowest scores are removed (Eq. 4). The gradient of
    all scores is W * dL/dW', times sign(s) if scores are ranked by magnitude (Eq. 5). The mask is
    selected once per change of the scores.

    Memory: the frozen weights, a masked copy of those that are masked, and one bit per masked
    weight.

    Args:
        model: a finished model with floating-point weights.
        blocks: which blocks, as in `mask_layers.choose_layers`.
        modules: `attention`, `mlp` or both, as in `mask_layers.choose_layers`.
        include: a regular expression over layer names instead of the two above.
        mask_ratio: the fraction of each layer's weights that is removed, exactly round(mask_ratio *
            n) of n; in (0, 1). One number for all layers, or a mapping by kind, projection and
            block, such as {"": "0.1", "q": "0.2", "4-7.down": "0.05"}, as in
            `mask_ratios.ratios_of`.
        threshold: keep the weights whose score is greater than this, instead of a ratio (the
            paper's global run uses -0.035).
        rank_by: rank scores by `magnitude` or by `value`; a threshold always applies to the value.
        init_std: the scores start as N(0, init_std).
        seed: seed of the initial scores, and of the order among ties.

    Raises:
        DeltaLensError: an argument is invalid; raised before anything is changed.

    Example:
        >>> import torch
        >>> from deltalens import MaskTuning
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False))
        >>> tuning = MaskTuning(model, mask_ratio=0.3)
        >>> optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
        >>> model(torch.ones(1, 10)).sum().backward()
        >>> optimizer.step()
        >>> tuning.mask_ratio_by_layer()
        {'0': 0.3}
        >>> model = tuning.merge()  # removed weights are exact zeros now
        >>> int((model[0].weight == 0).sum())
        30
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
                f"mask_ratio={mask_ratio} and threshold={threshold}: give only one of the two"
            )
        if threshold is not None and not math.isfinite(threshold):
            raise DeltaLensError(f"threshold={threshold}: must be finite")
        check_init_std(init_std)
        layers = choose_layers(model, blocks, modules, include)
        ratios = ratios_of(mask_ratio, layers)
        self._model = model
        rule_facts = {"mask_ratio": describe_ratios(mask_ratio, layers), "rank_by": rank_by}
        self._metadata: dict[str, Any] = {
            "method": "mft",
            **(rule_facts if threshold is None else {"threshold": threshold}),
            "init_std": init_std,
            "seed": seed,
        }
        self._layers: dict[str, tuple[Layer, LayerScores]] = {}
        for layer in layers:
            name = layer.weight_name
            removed = None if threshold is not None else round(ratios[layer.name] * layer.entries)
            layer_rule = Rule(
                name, removed, threshold or 0.0, rank_by == "value", name_key(seed, name)
            )
            self._layers[layer.name] = layer, LayerScores(layer, layer_rule, init_std, seed)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._detachers: list[Callable[[], None]] = []
        self._handles: list[_ChangedScores | RemovableHandle] = []
        self._attach()

    def _attach(self) -> None:
        for layer, scores in self._layers.values():
            weight = layer.module.get_parameter("weight")
            if weight.device.type == "cpu":
                # Compile first: if that fails, the model has not been changed.
                compile_keep_loops(scores.scores.dtype)
                straight_through.compile_loops(weight.dtype)
        for parameter in self._trained:
            parameter.requires_grad_(False)
        for layer, scores in self._layers.values():
            self._detachers.append(attach_scores(layer, scores))
        self._handles = [
            _ChangedScores(scores for _, scores in self._layers.values()),
            *let_gradients_in(self._model),
        ]
        for handle in self._handles:
            # Some hooks are in torch, not in the model: remove them when the model is deleted.
            weakref.finalize(self._model, handle.remove)

    @property
    def active(self) -> bool:
        """Whether the model is masked: True until `merge` or `detach`."""
        return bool(self._layers)

    @property
    def layers(self) -> list[str]:
        """Names of the masked layers; empty after `merge` or `detach`."""
        return list(self._layers)

    def parameters(self) -> list[nn.Parameter]:
        """Return the scores, for an optimizer.

        Returns:
            One parameter per masked layer, of its weight's shape.

        Raises:
            DeltaLensError: the masks have been merged or detached.
        """
        return [scores.scores for _, scores in self._active().values()]

    def packed_masks(self) -> dict[str, PackedMask]:
        """Return the masks for the current scores, one bit per weight.

        Do not change them; a later step has new ones. Under FSDP2 all processes must call this, and
        get the same masks.

        Returns:
            Layer name -> mask of the flat weight, true where it is kept.

        Raises:
            DeltaLensError: the masks have been merged or detached, or a score is NaN.
        """
        masks = {name: scores.kept() for name, (_, scores) in self._active().items()}
        empty = [name for name, kept in masks.items() if kept.size and not int(kept.count())]
        if empty:
            warnings.warn(fault_list("the mask removes every weight of", empty), stacklevel=2)
        return masks

    def weight_masks(self) -> WeightMasks:
        """Return the masks for the current scores, to be saved or applied.

        Returns:
            The masks with the unmasked weights.

        Raises:
            DeltaLensError: the masks have been merged or detached, or a score is NaN.
        """
        masks = [
            WeightMask(layer, original_weight(layer), kept)
            for (layer, _), kept in zip(
                self._active().values(), self.packed_masks().values(), strict=True
            )
        ]
        return WeightMasks(tuple(masks), self._metadata)

    def masks(self) -> dict[str, Tensor]:
        """Return the masks for the current scores as bool tensors.

        Returns:
            Layer name -> mask of the weight's shape, true where it is kept.

        Raises:
            DeltaLensError: the masks have been merged or detached, or a score is NaN.
        """
        return self.weight_masks().masks()

    def mask_ratio_by_layer(self) -> dict[str, float]:
        """Return the fraction removed from each layer.

        Returns:
            Layer name -> fraction of its weights that is removed.

        Raises:
            DeltaLensError: the masks have been merged or detached, or a score is NaN.
        """
        return self.weight_masks().mask_ratio_by_layer()

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit per weight; `apply_masks` reads it.

        In a distributed run the first process writes; under FSDP2 all processes must call this.

        Args:
            path: the file to write.

        Raises:
            DeltaLensError: the file cannot be written, or the masks have been merged or detached.
        """
        self.weight_masks().save(path)

    def merge(self) -> nn.Module:
        """Remove the weights for good and leave an ordinary model.

        The removed weights become exact zeros, the scores are dropped, and the parameters require
        gradients again where they did before.

        Returns:
            The model, for chaining.

        Raises:
            DeltaLensError: the masks have been merged or detached already, or the model is sharded.
        """
        masks = self.weight_masks()
        self.detach()
        masks.merge()
        return self._model

    def detach(self) -> None:
        """Give the model its original weights back, bit for bit, and drop the scores.

        The parameters require gradients again where they did before. Calling it again does nothing.

        Raises:
            DeltaLensError: the model is sharded.
        """
        if any(isinstance(original_weight(layer), DTensor) for layer, _ in self._layers.values()):
            raise DeltaLensError(
                "the model is sharded, and FSDP2 would go on gathering parameters that no longer "
                "exist: save the masks and apply them to the whole model (apply_masks), or take "
                "the masked weights from get_model_state_dict"
            )
        for handle in self._handles:
            handle.remove()
        for detach in self._detachers:
            detach()
        self._layers, self._detachers = {}, []
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._trained = []

    def __repr__(self) -> str:
        weights = sum(scores.scores.numel() for _, scores in self._layers.values())
        masked = f"{len(self._layers)} masked layers with {weights:,} weights"
        state = masked if self._layers else "merged or detached"
        return f"<MaskTuning of {type(self._model).__name__}: {state}>"

    def _active(self) -> dict[str, tuple[Layer, LayerScores]]:
        if not self._layers:
            raise DeltaLensError("the masks are gone: merge() or detach() has been called")
        return self._layers


class _ChangedScores:
    """Watch optimizer steps to learn when scores have changed.

    A sharded parameter, or one that is written through `.data`, leaves no other trace in the layer.
    The new masks are selected right after the step, layers in parallel. This watcher runs last, so
    that it sees the scores after a step mask has restored some of them.
    """

    runs_last: ClassVar[bool] = True

    def __init__(self, scores: Iterable[LayerScores]) -> None:
        self._watched = weakref.WeakSet(scores)
        watch(self)

    def on_begin(self, call: StepCall) -> None:
        """Nothing has changed."""

    def on_gradients(self, call: StepCall) -> None:
        """Nothing has changed."""

    def on_end(self, call: StepCall) -> None:
        """Some may have changed."""
        stepped = [p for group in call.optimizer.param_groups for p in group["params"]]
        ids = {id(parameter) for parameter in stepped}
        sharded = any(isinstance(parameter, DTensor) for parameter in stepped)
        changed = [scores for scores in self._watched if sharded or id(scores.scores) in ids]
        for scores in changed:
            scores.stale = True
        select_together(changed)

    def remove(self) -> None:
        """Stop watching."""
        unwatch(self)
