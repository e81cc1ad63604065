"""The models that span a plane: checkpoints in folders, or models in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, PairingError, fault_list
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.scoring.code import identify_module
from deltalens.scoring.loading import LoadedModel, Loading, pick_dtype
from deltalens.scoring.placement import DeviceMap
from deltalens.studies.landscape.grid import GRID
from deltalens.studies.landscape.spec import ScanSpec, pairings, steps_of
from deltalens.studies.live import LiveTensors
from deltalens.studies.slots import slots_of_checkpoint, slots_of_module
from deltalens.studies.weights import HeldWeights, StoredWeights, Weights, paired_weights

__all__ = ["HeldModels", "ModelSource", "StoredModels"]

ModelSource = str | Path | nn.Module | Mapping[str, Tensor]
"""The folder of a checkpoint; or a model in memory, or its state dict."""
_MIXED = "models in folders and models in memory do not mix: give all models in the same form"


class StoredModels:
    """Checkpoints in folders. The origin is loaded; the others are read part by part.

    Args:
        origin: the model in question.
        others: the models that span the plane with it.
        base: a further model to mark in the plane.
        spec: of the scan.
        device, dtype, trust_remote_code, device_map: how the origin is loaded.
        strict: refuse tensors that only some of the checkpoints contain.

    Raises:
        DeltaLensError: a checkpoint cannot be read, or they do not match; lists all mismatches.
    """

    def __init__(
        self,
        origin: str | Path | Mapping[str, Tensor],
        others: Sequence[ModelSource],
        base: ModelSource | None,
        spec: ScanSpec,
        device: torch.device,
        dtype: str,
        trust_remote_code: bool = False,
        strict: bool = False,
        device_map: DeviceMap | None = None,
    ) -> None:
        sources = [origin, *others, *([] if base is None else [base])]
        folders = [source for source in sources if isinstance(source, (str, Path))]
        if len(folders) < len(sources):
            raise DeltaLensError(_MIXED)
        self.origin = open_checkpoint(folders[0])
        self.device = device
        self.kind = pick_dtype(dtype, self.origin)
        if dtype == "auto" and self.kind != torch.float64:
            self.kind = torch.float32
        self.loading = Loading(self.kind, device, trust_remote_code, device_map)
        between: list[Path] = [Path(folder) for folder in folders[1 : 1 + len(others)]]
        if spec.plane == "trajectory":
            last = self.origin.path.resolve()
            between = [path for path in steps_of(between) if path.resolve() != last]
        more = [*between, *(Path(folder) for folder in folders[1 + len(others) :])]
        self.has_base = base is not None
        self.paths = [self.origin.path, *more]
        self.names = _names(self.paths)
        self._pairings = pairings(self.origin, more, spec.include, spec.exclude, strict)
        self._include, self._exclude = spec.include, spec.exclude

    not_comparable: str | None = None
    """Why a later call cannot tell whether its models are the same; None: files can be compared."""
    local_reason: str | None = None
    """Why only this process can use the models; None: any process can read the files."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All models that are stored on disk."""
        return [self.origin, *(pairing.base for pairing in self._pairings)]

    @property
    def weights(self) -> Weights:
        """The origin's weights, by stored name."""
        return StoredWeights.of(self.origin)

    @property
    def others(self) -> list[Weights]:
        """The weights of the other models, the base last."""
        return [paired_weights(pairing) for pairing in self._pairings]

    @property
    def sizes(self) -> dict[str, int]:
        """The tensors in which any two models can differ: name -> entries."""
        return {pair.name: pair.ft.numel for pairing in self._pairings for pair in pairing.pairs}

    def identity(self) -> dict[str, Any]:
        """Identify the models by their contents.

        Returns:
            JSON values by name.
        """
        return {
            "origin": self.origin.identity,
            "models": [pairing.base.identity for pairing in self._pairings],
            "base": self.has_base,
            "device": self.device.type,
            "dtype": str(self.kind).removeprefix("torch."),
        }

    def facts(self) -> dict[str, Any]:
        """Describe the models for the records.

        Returns:
            Their paths, and notes.
        """
        notes = {note for pairing in self._pairings for note in pairing.notes}
        return {"models": [str(path) for path in self.paths], "notes": sorted(notes)}

    def load(self) -> LoadedModel:
        """Load the origin.

        Returns:
            The live model.
        """
        return self.loading.load(self.origin)

    def live(self, loaded: LoadedModel) -> LiveTensors:
        """Find the tensors that are moved, and check that they hold the values in the files.

        Args:
            loaded: the origin, from `load`.

        Returns:
            The tensors.

        Raises:
            DeltaLensError: a tensor cannot be written in place, or holds other values.
        """
        copies = self._pairings[0].copies if self._pairings else {}
        slots = slots_of_checkpoint(
            loaded.model, self.origin, copies, loaded.fresh, self._include, self._exclude
        )
        live = LiveTensors(slots, self.weights)
        live.check("the origin's")
        return live


class HeldModels:
    """Models in memory. The origin itself is moved, after its weights are copied.

    Args:
        origin: the model in question.
        others: the models that span the plane with it.
        base: a further model to mark in the plane.
        spec: of the scan.

    Raises:
        DeltaLensError: the models do not match; lists all mismatches.
    """

    def __init__(
        self,
        origin: nn.Module,
        others: Sequence[ModelSource],
        base: ModelSource | None,
        spec: ScanSpec,
    ) -> None:
        self._model, self._known = origin, identify_module(origin)
        self.not_comparable = self._known.not_comparable
        """Why a later call cannot tell whether its model is the same; None: it can."""
        self._slots = slots_of_module(origin, spec.include, spec.exclude)
        first = self._slots[0].view
        self.device, self.kind = first.device, first.dtype
        self.weights: Weights = HeldWeights({slot.name: slot.view.clone() for slot in self._slots})
        self.has_base, self.paths = base is not None, list[Path]()
        between = [f"step {n}" for n in range(1, len(others) + 1)]
        if spec.plane != "trajectory":
            between = ["b", "c"][: len(others)]
        self.names = ["origin", *between, *(["base"] if self.has_base else [])]
        self.others: list[Weights] = []
        faults: list[str] = []
        sources = [*others, *([] if base is None else [base])]
        for name, source in zip(self.names[1:], sources, strict=True):
            tensors = _tensors(source)
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
    """All models that are stored on disk: none."""
    local_reason: str | None = "the models are in this process's memory"
    """Why only this process can use the models."""

    @property
    def sizes(self) -> dict[str, int]:
        """The tensors that are moved: name -> entries."""
        return {slot.name: slot.size for slot in self._slots}

    def identity(self) -> dict[str, Any]:
        """Identify the models by their contents.

        Returns:
            JSON values by name.
        """
        return {
            "origin": self.weights.fingerprint,
            "module": self._known.spec,
            "models": [other.fingerprint for other in self.others],
            "base": self.has_base,
            "device": self.device.type,
            "dtype": str(self.kind).removeprefix("torch."),
        }

    def facts(self) -> dict[str, Any]:
        """Describe the models for the records.

        Returns:
            Names in place of paths, and no notes.
        """
        return {"models": [type(self._model).__name__, *self.names[1:]], "notes": []}

    def load(self) -> LoadedModel:
        """Wrap the origin, which is already loaded.

        Returns:
            The live model.
        """
        return LoadedModel(self._model, None, self.device, ())

    def live(self, loaded: LoadedModel) -> LiveTensors:
        """Find the tensors that are moved.

        Args:
            loaded: the origin, from `load`.

        Returns:
            The tensors.
        """
        return LiveTensors(self._slots, self.weights)


def _tensors(source: ModelSource) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return {name: p.detach() for name, p in source.named_parameters(remove_duplicate=False)}
    if isinstance(source, Mapping):
        return dict(source)
    raise DeltaLensError(f"{source}: {_MIXED}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; folders of the same name get that of their parent in front."""
    short = [path.absolute().name for path in paths]
    return [
        name if short.count(name) == 1 and name != GRID else f"{path.absolute().parent.name}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]
