"""The learned scores of one linear layer's weight, as a parametrization of that weight.

Whoever asks the layer for its `weight` gets the masked one. The mask is selected anew only when
the scores have changed. A state dict has the masked weight under its ordinary name, so that plain
transformers loads a checkpoint of any moment as the masked model; the scores stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from deltalens.errors import DeltaLensError
from deltalens.gradients import local_part
from deltalens.methods.mask_layers import Layer
from deltalens.methods.weight_masks import gathered, shard_like
from deltalens.numerics import straight_through
from deltalens.numerics.hashing import name_key
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import Window, keep_above, keep_highest
from deltalens.numerics.workers import map_balanced, workers

__all__ = [
    "LayerScores",
    "Rule",
    "attach_scores",
    "check_init_std",
    "original_weight",
    "select_together",
]


@dataclass(frozen=True)
class Rule:
    """Which weights stay, given their scores."""

    name: str
    """Of the weight."""
    removed: int | None
    """How many go: those with the lowest scores; None: those at or below the threshold."""
    threshold: float
    by_value: bool
    """Whether signed scores are ranked, not magnitudes."""
    key: int
    """Of the hash that settles ties."""

    @property
    def signed(self) -> bool:
        """Whether the gradient carries the scores' sign."""
        return self.removed is not None and not self.by_value

    def select(self, scores: Tensor, near: Window | None) -> tuple[PackedMask, Window | None]:
        """The mask, and what to call with next time; scores are whole, of any shape."""
        flat, name = scores.detach().reshape(-1), f"scores of {self.name}"
        if self.removed is None:
            return keep_above(flat, self.threshold, name=name), None
        found = keep_highest(
            flat, self.removed, self.key, by_value=self.by_value, name=name, near=near
        )
        return found.mask, found.near


class LayerScores(nn.Module):
    """Scores, mask and masked weight of one layer.

    Memory: the masked weight, and one bit an entry. Under FSDP2 every process holds both for the
    whole layer.

    Attributes:
        scores: one a weight; ordinary parameters.
        stale: make it true where the scores may have changed without a trace (an optimizer that
            writes through `.data`).
    """

    scores: nn.Parameter

    def __init__(self, layer: Layer, rule: Rule, init_std: float, seed: int) -> None:
        super().__init__()
        weight = layer.module.get_parameter("weight")
        self.rule = rule
        self.scores = nn.Parameter(_initial(weight, layer.weight_name, init_std, seed))
        self.stale = True
        self._dtype = self.scores.dtype
        self._selected_from: tuple[Any, ...] | None = None
        self._kept: PackedMask | None = None
        self._near: Window | None = None
        self._masked: Tensor | None = None
        self._masked_with: PackedMask | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, connected to the scores."""
        if isinstance(weight, DTensor):
            return self.masked_like(weight)
        masked = self._masked_weight(weight)
        return straight_through.straight_through(
            self.scores, weight, masked, signed=self.rule.signed
        )

    def kept(self) -> PackedMask:
        """The mask of the whole flat weight, selected from the scores as they are now. Where they
        are sharded all processes have to ask.

        Raises:
            DeltaLensError: there is a NaN among the scores, or something has rounded them.
        """
        if self.scores.dtype != self._dtype:
            raise DeltaLensError(
                f"scores of {self.rule.name} arrive as {self.scores.dtype}, and were made as "
                f"{self._dtype}: masks would be selected from rounded scores. Cast the model "
                "before MaskTuning, and let no mixed-precision policy narrow its parameters "
                "(autocast is fine)"
            )
        state: tuple[Any, ...] | None = None
        if not isinstance(self.scores, DTensor):
            state = self.scores._version, self.scores.device
        # A whole layer that was selected in shards is known by its staleness alone.
        same = state is None or self._selected_from in (state, None)
        if self._kept is None or self.stale or not same:
            with torch.inference_mode(False):
                self._kept, self._near = self.rule.select(gathered(self.scores), self._near)
        self.stale, self._selected_from = False, state
        return self._kept

    def _masked_weight(self, weight: Tensor) -> Tensor:
        kept, held = self.kept(), self._masked
        if held is None or (held.dtype, held.device) != (weight.dtype, weight.device):
            with torch.inference_mode(False):
                held = torch.empty_like(
                    weight, memory_format=torch.contiguous_format, requires_grad=False
                )
            self._masked_with = None
        if self._masked_with is not kept:
            source = weight.detach().contiguous()
            straight_through.mask_into(source, kept, held, self._masked_with)
            # Whoever still has a graph over the masked weight before is told by autograd.
            torch.autograd.graph.increment_version(held)
            self._masked, self._masked_with = held, kept
        return held

    def masked_like(self, weight: Tensor) -> Tensor:
        """The masked weight without a graph: whole or sharded, as the weight is."""
        if not isinstance(weight, DTensor):
            return self._masked_weight(weight)
        kept = shard_like(self.kept().unpacked().view(weight.shape), weight)
        local = local_part(weight)
        return DTensor.from_local(
            torch.where(kept, local, local.new_zeros(())),
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )


def select_together(layers: Sequence[LayerScores]) -> None:
    """Select the masks of layers whose scores have changed, side by side; sharded ones, and those
    on an accelerator, wait until they are used."""
    here = [
        layer
        for layer in layers
        if not isinstance(layer.scores, DTensor) and layer.scores.device.type == "cpu"
    ]
    with workers() as mapper:
        map_balanced(mapper, LayerScores.kept, here, lambda layer: layer.scores.numel())


def _initial(weight: Tensor, name: str, std: float, seed: int) -> Tensor:
    """N(0, std), of (seed, name) alone."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(name_key(seed, f"{name}#scores") % (1 << 63))
    drawn = torch.empty(weight.shape, dtype=dtype).normal_(0.0, std, generator=generator)
    return drawn.to(weight.device)


def attach_scores(layer: Layer, scores: LayerScores) -> Callable[[], None]:
    """Give a layer a masked weight; what comes back gives it its own weight back."""
    module, order = layer.module, list(layer.module._parameters)
    # Unsafe: without a trial run, which would select a mask.
    parametrize.register_parametrization(module, "weight", scores, unsafe=True)
    hooks = [
        module.register_state_dict_post_hook(_write_plain),
        module.register_load_state_dict_pre_hook(_read_plain),
    ]

    def detach() -> None:
        for hook in hooks:
            hook.remove()
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        for name in order:
            module._parameters[name] = module._parameters.pop(name)

    return detach


def _scores_of(module: nn.Module) -> Any:
    return cast(Any, module).parametrizations.weight[0]


_ORIGINAL = "parametrizations.weight.original"


def original_weight(layer: Layer) -> Tensor:
    """The weight that a masked layer has underneath, detached."""
    return layer.module.get_parameter(_ORIGINAL).detach()


def _write_plain(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """In a state dict, put the masked weight where plain transformers looks for the weight."""
    weight = state.pop(prefix + _ORIGINAL, None)
    if weight is not None:
        state[f"{prefix}weight"] = _scores_of(module).masked_like(weight)


def _read_plain(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the scores from a state dict; of the weight, which is frozen, make sure that it is the
    same model's."""
    scores = _scores_of(module)
    scores.stale = True
    weight = state.pop(f"{prefix}weight", None)
    if weight is None:
        return
    own = module.get_parameter(_ORIGINAL)
    if isinstance(own, DTensor) and isinstance(weight, DTensor):
        there, here = local_part(weight), local_part(own)
    else:
        there, here = gathered(weight), gathered(own)
    there = there.to(here)
    if there.shape != here.shape or not bool(((there == here) | (there == 0)).all()):
        raise DeltaLensError(
            f"{scores.rule.name}: the checkpoint's weights are not this model's, masked or not. "
            "Masks are learned on frozen weights: start from the model that they were begun on"
        )
    state[prefix + _ORIGINAL] = own.detach()


def check_init_std(init_std: float) -> float:
    """The scores' standard deviation at the start, checked.

    Raises:
        DeltaLensError: it is not a positive number.
    """
    if isinstance(init_std, bool) or not isinstance(init_std, int | float):
        raise DeltaLensError(f"init_std={init_std!r} is no number")
    if not (math.isfinite(init_std) and init_std > 0):
        raise DeltaLensError(f"init_std={init_std}: must be above 0, and finite")
    return float(init_std)
