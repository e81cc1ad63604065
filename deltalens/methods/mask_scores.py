"""The learned scores of one linear layer's weight, as a parametrization of that weight.

Reading the layer's `weight` gives the masked weight. The mask is selected again only after the
scores have changed. A state dict holds the masked weight under its usual name, so that plain
transformers loads any checkpoint as the masked model; the scores are stored beside it.
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
    """The weight's parameter name."""
    removed: int | None
    """The number of weights to remove, those with the lowest scores; None removes those at or below
    the threshold."""
    threshold: float
    """Scores above this stay, if `removed` is None."""
    by_value: bool
    """Whether signed scores are ranked, rather than their magnitudes."""
    key: int
    """Key of the hash that breaks ties (`hashing.name_key`)."""

    @property
    def signed(self) -> bool:
        """Whether the scores' gradient carries their sign (MFT, Eq. 5)."""
        return self.removed is not None and not self.by_value

    def select(self, scores: Tensor, near: Window | None) -> tuple[PackedMask, Window | None]:
        """Select the mask.

        Args:
            scores: the scores of the whole layer, of any shape.
            near: what the previous call returned for this layer; it only saves time.

        Returns:
            The mask of the flat weight, and a window to pass to the next call.

        Raises:
            DeltaLensError: a score is NaN.
        """
        flat, name = scores.detach().reshape(-1), f"scores of {self.name}"
        if self.removed is None:
            return keep_above(flat, self.threshold, name=name), None
        kept = keep_highest(
            flat, self.removed, self.key, by_value=self.by_value, name=name, near=near
        )
        return kept.mask, kept.near


class LayerScores(nn.Module):
    """Scores, mask and masked weight of one layer.

    Memory: the masked weight, and one bit per entry. Under FSDP2 every process holds both for the
    whole layer.

    Args:
        layer: the layer to mask.
        rule: which weights stay.
        init_std: standard deviation of the initial scores, which are N(0, init_std).
        seed: seed of the initial scores.

    Attributes:
        scores: one per weight, of the weight's shape; an ordinary parameter.
        stale: set this to True if the scores may have changed without a trace (by an optimizer that
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
        """Compute the masked weight, connected to the scores.

        Args:
            weight: the frozen weight.

        Returns:
            weight * mask, of the weight's shape and dtype. Its gradient goes to the scores.

        Raises:
            DeltaLensError: a score is NaN, or the scores were cast to another dtype.
        """
        if isinstance(weight, DTensor):
            return self.masked_like(weight)
        masked = self._masked_weight(weight)
        return straight_through.straight_through(
            self.scores, weight, masked, signed=self.rule.signed
        )

    def kept(self) -> PackedMask:
        """Return the mask for the current scores. If they are sharded, all processes must call
        this.

        Returns:
            The mask of the whole flat weight, true where it is kept.

        Raises:
            DeltaLensError: a score is NaN, or the scores were cast to another dtype.
        """
        if self.scores.dtype != self._dtype:
            raise DeltaLensError(
                f"scores of {self.rule.name} were made as {self._dtype} but are "
                f"{self.scores.dtype} now: masks would be selected from rounded scores. Cast the "
                "model before MaskTuning, and do not let a mixed-precision policy cast its "
                "parameters (autocast is fine)"
            )
        state: tuple[Any, ...] | None = None
        if not isinstance(self.scores, DTensor):
            state = self.scores._version, self.scores.device
        # Once the scores were sharded, only the flag `stale` tells whether they changed.
        unchanged = state is None or self._selected_from in (state, None)
        if self._kept is None or self.stale or not unchanged:
            with torch.inference_mode(False):
                self._kept, self._near = self.rule.select(gathered(self.scores), self._near)
        self.stale, self._selected_from = False, state
        return self._kept

    def _masked_weight(self, weight: Tensor) -> Tensor:
        kept, masked = self.kept(), self._masked
        if masked is None or (masked.dtype, masked.device) != (weight.dtype, weight.device):
            with torch.inference_mode(False):
                masked = torch.empty_like(
                    weight, memory_format=torch.contiguous_format, requires_grad=False
                )
            self._masked_with = None
        if self._masked_with is not kept:
            source = weight.detach().contiguous()
            straight_through.mask_into(source, kept, masked, self._masked_with)
            # Lets autograd refuse a graph that still uses the previous masked weight.
            torch.autograd.graph.increment_version(masked)
            self._masked, self._masked_with = masked, kept
        return masked

    def masked_like(self, weight: Tensor) -> Tensor:
        """Return the masked weight without a graph.

        Args:
            weight: the frozen weight; whole or sharded.

        Returns:
            weight * mask, sharded as the weight is.

        Raises:
            DeltaLensError: a score is NaN, or the scores were cast to another dtype.
        """
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
    """Select the masks of several layers whose scores have changed, in parallel.

    Sharded layers and those on an accelerator are left for their next use.

    Args:
        layers: the layers' scores.

    Raises:
        DeltaLensError: a score is NaN, or the scores were cast to another dtype.
    """
    on_cpu = [
        layer
        for layer in layers
        if not isinstance(layer.scores, DTensor) and layer.scores.device.type == "cpu"
    ]
    with workers() as mapper:
        map_balanced(mapper, LayerScores.kept, on_cpu, lambda layer: layer.scores.numel())


def _initial(weight: Tensor, name: str, std: float, seed: int) -> Tensor:
    """Draw N(0, std) scores that depend only on seed and name."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(name_key(seed, f"{name}#scores") % (1 << 63))
    drawn = torch.empty(weight.shape, dtype=dtype).normal_(0.0, std, generator=generator)
    return drawn.to(weight.device)


def attach_scores(layer: Layer, scores: LayerScores) -> Callable[[], None]:
    """Replace a layer's weight by its masked weight.

    Args:
        layer: the layer.
        scores: its scores.

    Returns:
        A function that gives the layer its original weight back.
    """
    module, order = layer.module, list(layer.module._parameters)
    # unsafe: skips a trial run, which would select a mask.
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
    """Return the unmasked weight of a masked layer.

    Args:
        layer: a layer that `attach_scores` has changed.

    Returns:
        The weight, detached; not a copy.
    """
    return layer.module.get_parameter(_ORIGINAL).detach()


def _write_plain(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Put the masked weight into a state dict under the name that plain transformers looks for."""
    weight = state.pop(prefix + _ORIGINAL, None)
    if weight is not None:
        state[f"{prefix}weight"] = _scores_of(module).masked_like(weight)


def _read_plain(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read scores from a state dict, after checking that the frozen weight is the same model's."""
    scores = _scores_of(module)
    scores.stale = True
    weight = state.pop(f"{prefix}weight", None)
    if weight is None:
        return
    original = module.get_parameter(_ORIGINAL)
    if isinstance(original, DTensor) and isinstance(weight, DTensor):
        stored, current = local_part(weight), local_part(original)
    else:
        stored, current = gathered(weight), gathered(original)
    stored = stored.to(current)
    if stored.shape != current.shape or not bool(((stored == current) | (stored == 0)).all()):
        raise DeltaLensError(
            f"{scores.rule.name}: the checkpoint's weights are not this model's, masked or "
            "unmasked. Masks are learned on frozen weights: load the model that the masks were "
            "started from"
        )
    state[prefix + _ORIGINAL] = original.detach()


def check_init_std(init_std: float) -> float:
    """Check the standard deviation of the initial scores.

    Args:
        init_std: the standard deviation.

    Returns:
        The standard deviation as a float.

    Raises:
        DeltaLensError: the argument is not a positive, finite number.
    """
    if isinstance(init_std, bool) or not isinstance(init_std, int | float):
        raise DeltaLensError(f"init_std={init_std!r} is not a number")
    if not (math.isfinite(init_std) and init_std > 0):
        raise DeltaLensError(f"init_std={init_std}: must be above 0 and finite")
    return float(init_std)
