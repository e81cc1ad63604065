"""Sparse fine-tuning: train the entries with the highest salience, and leave the rest alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist

from deltalens.errors import DeltaLensError
from deltalens.methods.frozen import let_gradients_in
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.targets import Targets, choose_targets
from deltalens.methods.sparse import checks
from deltalens.methods.sparse.adapter import SparseAdapter, layers_by_weight, save_as_shira
from deltalens.methods.sparse.budget import Budget, plan_budget
from deltalens.methods.sparse.entries import TrainedEntries
from deltalens.methods.sparse.layers import adapt_layer, restore_layer
from deltalens.methods.sparse.masks import (
    Masks,
    Ranking,
    check_masks,
    counted,
    mask_budget,
    packed_mask,
)
from deltalens.methods.sparse.refresh import StepsOfValues
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import Rate
from deltalens.numerics.sampled import TurnedColumns

__all__ = ["SparseTuning"]


class SparseTuning:
    """Salience-aware sparse fine-tuning (SPEFT, arXiv 2412.13488) for any trainer.

    Once the object exists, only the chosen entries are trained: their values are ordinary
    parameters, so that any optimizer's state is as small as they are. The weight itself carries
    base + values (fp32 values; each sum is rounded once to the weight's dtype), so the forward pass
    is the plain model's; the backward pass computes only the products at the chosen entries. Make
    the object before the optimizer, and before the model is wrapped (DDP) or compiled; end with
    `merge` or `unmerge`. A checkpoint in between holds the trained weights under their usual names,
    and beside them all that is needed to go on bit for bit.

    Args:
        model: the base, with floating-point weights.
        density: the share of the adapted weights that is trained, in (0, 1]: exactly
            round(density * n) of a unit's n entries. Or one of the next two.
        like_lora: a rank r; as many entries as a LoRA of this rank has on the same layers.
        of_model: the share of all the model's parameters.
        metric: what entries are ranked by, as in `deltalens.salience`.
        batches: calibration batches, as in `deltalens.salience`; with `refresh_every` a function
            from the number of a mask, from 0, to its batches, so that each mask has fresh ones.
            Not needed by `magnitude`, `synflow` and `random`.
        steps: how many batches are used at most.
        expectation: as in `deltalens.salience`.
        scope: what is ranked together: `global`, `layer` (a block), or `tensor` (the paper's local
            masks).
        targets: which layers are adapted: `attention`, `linear`, or names of layers as peft takes
            them.
        masks: layer or weight name -> bool mask of the weight's shape, or flat indices; instead of
            a number, a metric and targets.
        whole: names of parameters or modules that train as they are beside the entries (a new
            head). They are counted apart.
        refresh_every: renew the masks before every such step (Algorithm 1); None: they stay.
        ties: `hash`: exactly that many entries; `keep`: all that tie with the last one, too (Eq.
            2).
        loss: as in `deltalens.salience`.
        seed: of ties and of random masks.

    Raises:
        DeltaLensError: an argument is invalid, nothing or not everything can be adapted, or the
            salience is not finite; raised before the model is changed.

    Example:
        >>> import torch
        >>> from deltalens import SparseTuning
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False))
        >>> tuning = SparseTuning(model, 0.05, metric="magnitude", targets=["0"])
        >>> optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
        >>> before = model[0].weight.detach().clone()
        >>> model(torch.ones(1, 10)).sum().backward()
        >>> optimizer.step()
        >>> int((model[0].weight != before).sum())
        5
        >>> model = tuning.merge()  # an ordinary model with 5 changed weights
    """

    def __init__(
        self,
        model: nn.Module,
        density: Rate | None = None,
        *,
        like_lora: int | None = None,
        of_model: Rate | None = None,
        metric: str = "gradient",
        batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
        steps: int = 64,
        expectation: str | None = None,
        scope: str = "global",
        targets: Targets = "attention",
        masks: Masks | None = None,
        whole: Sequence[str] = (),
        refresh_every: int | None = None,
        ties: str = "hash",
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        checks.check_refresh(refresh_every, scope, masks, batches, ties)
        self.notes: list[str] = []
        """What a user should know about how the entries were chosen."""
        if masks is None:
            layers = choose_targets(model, targets)
            checks.refuse_adapted(model)
            grouped = targets in ("attention", "linear")
            layers = checks.trainable_layers(model, layers, self.notes if grouped else None)
            plan = plan_budget(
                model, layers, density=density, like_lora=like_lora, of_model=of_model, scope=scope
            )
            self._ranking: Ranking | None = Ranking(
                metric, batches, steps, expectation, ties, loss, seed, layers, plan.units
            )
            chosen = self._ranking.choose(model, 0, self.notes)
            budget = counted(plan, chosen)
            if refresh_every is None:
                # Ranked together, a layer may get nothing; with later masks it may.
                layers = [layer for layer in layers if len(chosen[layer.weight_name])]
        else:
            checks.refuse_adapted(model)
            layers, chosen = check_masks(model, masks, (density, like_lora, of_model))
            checks.trainable_layers(model, layers)
            budget, self._ranking = mask_budget(model, layers, chosen), None
        self.budget: Budget = budget
        """How many entries are trained, and what share of the layers and of the model that is."""
        about: dict[str, Any] = {"method": "speft", "metric": metric if masks is None else None}
        about |= {"scope": scope, "refresh_every": refresh_every, "seed": seed}
        self._start(model, layers, chosen, whole, refresh_every, about)

    def _start(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        chosen: Mapping[str, Tensor],
        whole: Sequence[str],
        refresh_every: int | None,
        about: Mapping[str, Any],
    ) -> None:
        self._model, self._about = model, dict(about)
        self._heads = checks.whole_parameters(model, whole, layers)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._heads_before = {name: head.detach().clone() for name, head in self._heads.items()}
        self.trained_whole = sum(head.numel() for head in self._heads.values())
        """Parameters that train whole beside the entries: a new head."""
        keep = {id(head) for head in self._heads.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in keep)
        self._layers = {layer.weight_name: layer for layer in layers}
        self._read, named = TurnedColumns(), self._layers.items()
        self._entries: dict[str, TrainedEntries] = {
            name: adapt_layer(layer, chosen[name], self._read) for name, layer in named
        }
        self._steps = StepsOfValues(self, model, refresh_every)
        # Lives as long as the model: a tuning need not be kept to be trained.
        next(iter(self._entries.values())).clock = self._steps
        self._handles: list[Any] = [self._steps, *let_gradients_in(model)]
        self.active = True
        """Whether entries are trained: True until `merge` or `unmerge`."""

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Self:
        """Go on from a saved adapter, on the base that it was trained from.

        Masks stay as they are from then on: for a dynamic run, resume from its checkpoint.

        Args:
            path: as in `SparseAdapter.read`.
            model: the base; changed to base + adapter.

        Returns:
            A tuning whose entries, values and weights are those that were saved.

        Raises:
            DeltaLensError: the adapter cannot be read, or is for another base.
        """
        adapter = SparseAdapter.read(path, model)
        named = layers_by_weight(model)
        layers = [named[each.name] for each in adapter.weights]
        choose_targets(model, [layer.name for layer in layers])
        checks.trainable_layers(model, layers)
        chosen = {each.name: each.indices.to(torch.int64) for each in adapter.weights}
        tuning = cls.__new__(cls)
        tuning.notes, tuning._ranking = [], None
        tuning.budget = mask_budget(model, layers, chosen)
        weights = {name: named[name].module.get_parameter("weight").detach() for name in chosen}
        before = [SparseAdapter.fold(each, weights[each.name]) for each in adapter.weights]
        tuning._start(model, layers, chosen, tuple(adapter.whole), None, adapter.about)
        for each, originals in zip(adapter.weights, before, strict=True):
            tuning._entries[each.name].restart(each, originals)
        for name, head in tuning._heads.items():
            head.detach().copy_(adapter.whole[name])
        tuning.write()
        return tuning

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._steps.steps

    @property
    def index_bytes(self) -> int:
        """Memory of the places of all trained entries, in bytes."""
        return sum(entries.places.nbytes for entries in self._entries.values())

    def parameters(self) -> list[nn.Parameter]:
        """Return the values, for an optimizer.

        Returns:
            One parameter per layer with trained entries, (k,) of its k entries, fp32 (fp64 where
            the weight is); with `refresh_every` also of layers that have none now.

        Raises:
            DeltaLensError: the tuning has ended.
        """
        self._check_active()
        return [entries.values for entries in self._entries.values()]

    def indices(self) -> dict[str, Tensor]:
        """Return where the trained entries are.

        Returns:
            Weight name -> ascending flat indices, int64, (k,).

        Raises:
            DeltaLensError: the tuning has ended.
        """
        self._check_active()
        return {name: each.places.flat for name, each in self._entries.items()}

    def packed_masks(self) -> dict[str, PackedMask]:
        """Return the masks as they are now, one bit per weight.

        Returns:
            Layer name -> mask of the flat weight, true where it is trained.

        Raises:
            DeltaLensError: the tuning has ended.
        """
        return {
            self._layers[name].name: packed_mask(flat, self._layers[name].entries)
            for name, flat in self.indices().items()
        }

    def refresh(self) -> None:
        """Renew the masks now: keep what was learned, rank the entries again on fresh batches, and
        forget the optimizer's state of the values (SPEFT, section 3.4).

        Raises:
            DeltaLensError: the tuning has ended, or was made from masks.
        """
        self._check_active()
        if self._ranking is None:
            raise DeltaLensError("the masks were given, not ranked: they cannot be renewed")
        self._steps.renew()

    def renew(self, number: int) -> None:
        """Rank the entries again; `refresh` also forgets the optimizer's state.

        Args:
            number: of the renewal, from 1; decides the batches.
        """
        self.write()
        assert self._ranking is not None
        chosen = self._ranking.choose(self._model, number, self.notes)
        self.budget = counted(self.budget, chosen)
        for name, entries in self._entries.items():
            entries.move(self._layers[name].module.get_parameter("weight"), chosen[name])

    def write(self) -> None:
        """Write base + values into the weights: after each step, and by hand after `.data`."""
        self._read.clear()
        for name, entries in self._entries.items():
            entries.write(self._layers[name].module.get_parameter("weight"), always=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is needed to come back to this point of the training.

        Returns:
            Name in the model's state dict -> tensor, of the adapted layers and of what trains
            whole; not copies.
        """
        self.write()
        state: dict[str, Tensor] = {}
        for layer in self._layers.values():
            state |= layer.module.state_dict(prefix=f"{layer.name}.")
        adapted = {id(value) for value in self.parameters()}
        return state | {
            name: parameter.detach()
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and id(parameter) not in adapted
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Come back to a point of the training.

        Args:
            state: what `state_dict` returned; copied.
        """
        self._model.load_state_dict(dict(state), strict=False)

    def adapter(self) -> SparseAdapter:
        """Return what was trained, without the model.

        Returns:
            The adapter, with copies of the entries.

        Raises:
            DeltaLensError: the tuning has ended.
        """
        self._check_active()
        self.write()
        weights = tuple(
            entries.as_stored(self._layers[name].module.get_parameter("weight"))
            for name, entries in self._entries.items()
        )
        whole = {name: head.detach().clone() for name, head in self._heads.items()}
        return SparseAdapter(weights, {**self._about, "steps": self.step}, whole)

    def save(self, path: str | Path, format: str = "deltalens") -> None:
        """Write what was trained to a small file.

        Args:
            path: the file; for `shira` a new folder.
            format: `deltalens`: bit-exact, with a digest of the base; `shira`: peft's SHiRA, which
                `PeftModel.from_pretrained` loads: the differences to the base at all entries that
                were ever trained; it has no place for what trained whole.

        Raises:
            DeltaLensError: it cannot be written, or not in that format; the tuning has ended.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_rank():
            return
        if format not in ("deltalens", "shira"):
            raise DeltaLensError(f"format {format!r}: choose one of deltalens, shira")
        if format == "deltalens":
            self.adapter().save(path)
            return
        self._check_active()
        self.write()
        weights = (each.module.get_parameter("weight") for each in self._layers.values())
        differences = [*map(TrainedEntries.differences, self._entries.values(), weights)]
        save_as_shira(path, self._model, self._layers, differences, [*self._heads])

    def merge(self) -> nn.Module:
        """Leave an ordinary model with the trained weights.

        Returns:
            The model, for chaining.

        Raises:
            DeltaLensError: the tuning has ended already.
        """
        self._check_active()
        self.write()
        self._end()
        return self._model

    def unmerge(self) -> nn.Module:
        """Leave an ordinary model with the base's weights, bit for bit; after `merge`, too.

        Returns:
            The model, for chaining.
        """
        if self.active:
            self._end()
        for name, entries in self._entries.items():
            entries.undo(self._layers[name].module.get_parameter("weight"))
        for name, before in self._heads_before.items():
            self._heads[name].detach().copy_(before)
        return self._model

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self._layers.values():
            restore_layer(layer)
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self.active = False

    def _check_active(self) -> None:
        if not self.active:
            raise DeltaLensError("the tuning has ended: merge() or unmerge() has been called")

    def __repr__(self) -> str:
        state = str(self.budget) if self.active else "merged or unmerged"
        return f"<SparseTuning of {type(self._model).__name__}: {state}>"
