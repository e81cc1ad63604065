"""The models that make a plane: checkpoints in folders, or models in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, PairingError, fault_list
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.scoring.code import identify_module
from deltalens.scoring.loading import LoadedModel, load_model, pick_dtype
from deltalens.studies.landscape.grid import GRID
from deltalens.studies.landscape.spec import ScanSpec, pairings, steps_of
from deltalens.studies.live import LiveTensors
from deltalens.studies.places import slots_of_checkpoint, slots_of_module
from deltalens.studies.weights import HeldWeights, StoredWeights, Weights, paired_weights

__all__ = ["Given", "HeldModels", "StoredModels"]

Given = str | Path | nn.Module | Mapping[str, Tensor]
"""A checkpoint's folder; or a model, or its state dict, in memory."""


class StoredModels:
    """Checkpoints in folders: the origin is loaded, the others are read part by part.

    Raises:
        DeltaLensError: one cannot be read, or they do not match; all mismatches at once.
    """

    def __init__(
        self,
        origin: str | Path | Mapping[str, Tensor],
        others: Sequence[Given],
        base: Given | None,
        spec: ScanSpec,
        device: torch.device,
        dtype: str,
        trust_remote_code: bool = False,
        strict: bool = False,
    ) -> None:
        every = [origin, *others, *([] if base is None else [base])]
        folders = [given for given in every if isinstance(given, (str, Path))]
        if len(folders) < len(every):
            raise DeltaLensError(
                "models in folders and models in memory do not mix: give all as one"
            )
        self.origin = open_checkpoint(folders[0])
        self.device, self.trust_remote_code = device, trust_remote_code
        self.kind = pick_dtype(dtype, self.origin)
        if dtype == "auto" and self.kind != torch.float64:
            self.kind = torch.float32
        between: list[Path] = [Path(folder) for folder in folders[1 : 1 + len(others)]]
        if spec.plane == "trajectory":
            here = self.origin.path.resolve()
            between = [path for path in steps_of(between) if path.resolve() != here]
        more = [*between, *(Path(folder) for folder in folders[1 + len(others) :])]
        self.has_base = base is not None
        self.paths = [self.origin.path, *more]
        self.names = _names(self.paths)
        self._pairings = pairings(self.origin, more, spec.include, spec.exclude, strict)
        self._include, self._exclude = spec.include, spec.exclude

    once: str | None = None
    """Files can always be compared with those of a later call."""
    stays: str | None = None
    """Any process can read them."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Of every model: what of them is on the disk."""
        return [self.origin, *(pairing.base for pairing in self._pairings)]

    @property
    def weights(self) -> Weights:
        """The origin's, by stored name."""
        return StoredWeights.of(self.origin)

    @property
    def others(self) -> list[Weights]:
        """Of the others, and last of the base."""
        return [paired_weights(pairing) for pairing in self._pairings]

    @property
    def sizes(self) -> dict[str, int]:
        """The tensors in which any two can differ: name -> entries."""
        return {pair.name: pair.ft.numel for found in self._pairings for pair in found.pairs}

    def identity(self) -> dict[str, Any]:
        """Which models: by what is in them."""
        return {
            "origin": self.origin.identity,
            "models": [pairing.base.identity for pairing in self._pairings],
            "base": self.has_base,
            "device": self.device.type,
            "dtype": str(self.kind).removeprefix("torch."),
        }

    def facts(self) -> dict[str, Any]:
        """Where they were found."""
        notes = {note for pairing in self._pairings for note in pairing.notes}
        return {"models": [str(path) for path in self.paths], "notes": sorted(notes)}

    def load(self) -> LoadedModel:
        """The origin as a live model."""
        return load_model(self.origin, self.kind, self.device, self.trust_remote_code)

    def live(self, loaded: LoadedModel) -> LiveTensors:
        """What of it can be moved, after a look whether it is what the files say."""
        copies = self._pairings[0].copies if self._pairings else {}
        slots = slots_of_checkpoint(
            loaded.model, self.origin, copies, loaded.fresh, self._include, self._exclude
        )
        live = LiveTensors(slots, self.weights)
        live.check("the origin's")
        return live


class HeldModels:
    """Models in memory; the origin is moved itself, and its weights are copied first.

    Raises:
        DeltaLensError: they do not match; all mismatches at once.
    """

    def __init__(
        self, origin: nn.Module, others: Sequence[Given], base: Given | None, spec: ScanSpec
    ) -> None:
        self._model, self._known = origin, identify_module(origin)
        self.once = self._known.once
        """Why nobody can know whether a later call hands in the same model, if so."""
        self._slots = slots_of_module(origin, spec.include, spec.exclude)
        first = self._slots[0].view
        self.device, self.kind = first.device, first.dtype
        self.weights: Weights = HeldWeights({s.name: s.view.clone() for s in self._slots})
        self.has_base, self.paths = base is not None, list[Path]()
        between = [f"step {n}" for n in range(1, len(others) + 1)]
        if spec.plane != "trajectory":
            between = ["b", "c"][: len(others)]
        self.names = ["origin", *between, *(["base"] if self.has_base else [])]
        self.others: list[Weights] = []
        faults: list[str] = []
        every = [*others, *([] if base is None else [base])]
        for name, given in zip(self.names[1:], every, strict=True):
            tensors = _tensors(given)
            for slot in self._slots:
                if slot.name not in tensors:
                    faults.append(f"{name} has no {slot.name!r}")
                elif tensors[slot.name].shape != slot.view.shape:
                    shapes = list(slot.view.shape), list(tensors[slot.name].shape)
                    faults.append(
                        f"{slot.name!r} is {shapes[0]} in the origin, {shapes[1]} in {name}"
                    )
            self.others.append(HeldWeights(tensors))
        if faults:
            raise PairingError(fault_list("The models do not match:", faults))

    checkpoints: tuple[Checkpoint, ...] = ()
    """They are on no disk."""
    stays: str | None = "the models are in this process's memory"
    """Why no other process can have them."""

    @property
    def sizes(self) -> dict[str, int]:
        """What moves: name -> entries."""
        return {slot.name: slot.size for slot in self._slots}

    def identity(self) -> dict[str, Any]:
        """Which models: by what is in them."""
        return {
            "origin": self.weights.fingerprint,
            "module": self._known.spec,
            "models": [other.fingerprint for other in self.others],
            "base": self.has_base,
            "device": self.device.type,
            "dtype": str(self.kind).removeprefix("torch."),
        }

    def facts(self) -> dict[str, Any]:
        """They have no place on a disk."""
        return {"models": [type(self._model).__name__, *self.names[1:]], "notes": []}

    def load(self) -> LoadedModel:
        """The origin, which is there already."""
        return LoadedModel(self._model, None, self.device, ())

    def live(self, loaded: LoadedModel) -> LiveTensors:
        """What of it can be moved."""
        return LiveTensors(self._slots, self.weights)


def _tensors(given: Given) -> dict[str, Tensor]:
    if isinstance(given, nn.Module):
        return {name: p.detach() for name, p in given.named_parameters(remove_duplicate=False)}
    if isinstance(given, Mapping):
        return dict(given)
    raise DeltaLensError(
        f"{given}: models in folders and models in memory do not mix: give all as one"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with their parents' where two have the same."""
    short = [path.absolute().name for path in paths]
    return [
        name if short.count(name) == 1 and name != GRID else f"{path.absolute().parent.name}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]
