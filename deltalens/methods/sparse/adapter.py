"""Sparse adapters beside a model: put into its weights, and taken out bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.peft_sparse import is_peft_folder, read_peft_sparse, write_shira
from deltalens.io.sparse_file import StoredEntries, read_sparse, write_sparse
from deltalens.methods.mask_layers import Layer, linear_layers
from deltalens.methods.sparse.layers import is_adapted, rows_are_inputs
from deltalens.methods.weight_masks import weight_digest

__all__ = ["SparseAdapter", "SparseAdapters", "layers_by_weight", "save_as_shira", "shape_of"]


@dataclass(frozen=True)
class SparseAdapter:
    """What a sparse fine-tuning changed, without the model.

    Example:
        >>> import torch
        >>> from deltalens import SparseAdapter, SparseTuning
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
        >>> base = model[0].weight.detach().clone()
        >>> tuning = SparseTuning(model, 0.25, metric="magnitude", targets=["0"])
        >>> _ = torch.nn.init.ones_(tuning.parameters()[0])
        >>> tuning.save("adapter.safetensors")
        >>> model = tuning.unmerge()
        >>> adapter = SparseAdapter.read("adapter.safetensors", model)
        >>> remove = adapter.apply(model)
        >>> int((model[0].weight != base).sum())
        16
        >>> remove()
        >>> torch.equal(model[0].weight, base)
        True
    """

    weights: tuple[StoredEntries, ...]
    """The trained entries of each weight."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How they were trained."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters that trained whole beside the entries (a new head), by name."""

    def __repr__(self) -> str:
        trained = sum(each.values.numel() for each in self.weights)
        return f"<SparseAdapter of {len(self.weights)} weights: {trained:,} entries>"

    @classmethod
    def read(cls, path: str | Path, model: nn.Module) -> SparseAdapter:
        """Read an adapter, and check that it is for this model.

        Args:
            path: a file that `SparseTuning.save` wrote, or a folder with a SHiRA or Super-Tuning
                adapter of peft's (which names no base, so that only shapes are checked).
            model: the base.

        Returns:
            The adapter.

        Raises:
            DeltaLensError: it cannot be read, or is for another base.
        """
        file = Path(path)
        if is_peft_folder(file):
            layers = {
                layer.name: shape_of(layer)
                for layer in linear_layers(model)
                if not rows_are_inputs(layer.module)
            }
            adapter = cls(tuple(read_peft_sparse(file, layers)), {"read_from": "peft"})
        else:
            found = read_sparse(file)
            adapter = cls(found.weights, found.about, found.whole)
        adapter._check(file, model)
        return adapter

    def _check(self, file: Path, model: nn.Module) -> None:
        layers = layers_by_weight(model)
        name, faults = type(model).__name__, []
        for each in self.weights:
            layer = layers.get(each.name)
            if layer is None:
                faults.append(f"{each.name}: {name} has no linear layer of this name")
            elif shape_of(layer) != each.shape:
                faults.append(
                    f"{each.name}: shape {list(shape_of(layer))}, in the file {list(each.shape)}"
                )
            elif is_adapted(layer.module):
                faults.append(f"{each.name}: is adapted already; call merge() or unmerge() first")
            elif not _weight(layer).is_contiguous():
                faults.append(f"{each.name}: the model's weight is not contiguous in memory")
        parameters = dict(model.named_parameters())
        for whole, tensor in self.whole.items():
            if whole not in parameters or parameters[whole].shape != tensor.shape:
                faults.append(
                    f"{whole}: {name} has no such parameter of shape {list(tensor.shape)}"
                )
        if faults:
            raise DeltaLensError(fault_list(f"{file}: this adapter does not fit {name}:", faults))
        differing = [
            each.name
            for each in self.weights
            if each.digest and weight_digest(_weight(layers[each.name])) != each.digest
        ]
        if differing:
            raise DeltaLensError(
                fault_list(
                    f"{file}: the adapter was trained from another base than this {name} (another "
                    "model, another dtype, or another adapter is applied), which differs in",
                    differing,
                )
            )

    def save(self, path: str | Path) -> None:
        """Write the adapter, bit-exact and complete.

        Args:
            path: a file.

        Raises:
            DeltaLensError: it cannot be written.
        """
        write_sparse(Path(path), self.weights, self.about, self.whole)

    def apply(self, model: nn.Module) -> Any:
        """Put the adapter into a model's weights.

        Args:
            model: the base that it was read for.

        Returns:
            A function without arguments that gives the weights their bits back.
        """
        layers = layers_by_weight(model)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for each in self.weights:
            weight = _weight(layers[each.name])
            touched = each.indices if each.folded_indices is None else each.folded_indices
            places = touched.to(weight.device)
            kept.append((weight, places, weight.view(-1)[places]))
            self.write(each, weight)
        heads = [(model.get_parameter(name).detach(), new) for name, new in self.whole.items()]
        before = [parameter.clone() for parameter, _ in heads]
        for parameter, new in heads:
            parameter.copy_(new)

        def remove() -> None:
            for (parameter, _), old in zip(heads, before, strict=True):
                parameter.copy_(old)
            for weight, places, numbers in kept:
                weight.view(-1)[places] = numbers

        return remove

    @staticmethod
    def fold(entries: StoredEntries, weight: Tensor) -> Tensor | None:
        """Write what earlier masks have left in one weight.

        Args:
            entries: of this weight.
            weight: changed in place; contiguous, detached.

        Returns:
            What the weight had at these entries; None if there was one mask.
        """
        if entries.folded_indices is None or entries.folded_weights is None:
            return None
        flat, places = weight.view(-1), entries.folded_indices.to(weight.device)
        before = flat[places]
        flat[places] = entries.folded_weights.to(weight)
        return before

    @staticmethod
    def write(entries: StoredEntries, weight: Tensor) -> None:
        """Write what was trained into one weight.

        Args:
            entries: of this weight.
            weight: changed in place; contiguous, detached.
        """
        flat = weight.view(-1)
        SparseAdapter.fold(entries, weight)
        places, values = entries.indices.to(weight.device), entries.values.to(weight.device)
        flat[places] = (flat[places].to(values.dtype) + values).to(weight.dtype)


class SparseAdapters:
    """Several adapters of one base, of which one at a time is in the model's weights.

    Args:
        model: the base.
        paths: name -> what `SparseAdapter.read` takes.

    Raises:
        DeltaLensError: one cannot be read, or is for another base.

    Example:
        >>> import torch
        >>> from deltalens import SparseAdapters, SparseTuning
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
        >>> for name, step in (("maths", 1.0), ("code", 2.0)):
        ...     tuning = SparseTuning(model, 0.25, metric="magnitude", targets=["0"])
        ...     _ = torch.nn.init.constant_(tuning.parameters()[0], step)
        ...     tuning.save(f"{name}.safetensors")
        ...     model = tuning.unmerge()
        >>> base = model[0].weight.sum().item()
        >>> adapters = SparseAdapters(model, {n: f"{n}.safetensors" for n in ("maths", "code")})
        >>> adapters.use("code")
        >>> round(model[0].weight.sum().item() - base)
        32
        >>> adapters.use(None)  # the base again, bit for bit
        >>> model[0].weight.sum().item() == base
        True
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, str | Path]) -> None:
        self._model = model
        self._adapters = {name: SparseAdapter.read(path, model) for name, path in paths.items()}
        self._remove: Any = None
        self.used: str | None = None
        """The adapter that is in the weights; None: the base is."""

    def use(self, name: str | None) -> None:
        """Switch to an adapter.

        Args:
            name: of the adapter; None: the base as it was.

        Raises:
            DeltaLensError: there is none of this name.
        """
        if name is not None and name not in self._adapters:
            known = ", ".join(self._adapters)
            raise DeltaLensError(f"{name}: no such adapter; there are {known}")
        if self._remove is not None:
            self._remove()
        self._remove = None if name is None else self._adapters[name].apply(self._model)
        self.used = name


def save_as_shira(
    path: str | Path,
    model: nn.Module,
    layers: Mapping[str, Layer],
    differences: Sequence[StoredEntries],
    whole: Sequence[str],
) -> None:
    """Write differences to a base as peft's SHiRA.

    Args:
        path: the folder to write; new.
        model: the model, whose name or folder peft's configuration names.
        layers: weight name -> layer of it.
        differences: of each weight, its entries and what is added to the base there.
        whole: names of what trained whole.

    Raises:
        DeltaLensError: a layer is none that peft's SHiRA adapts, the entries do not fit its form,
            or it cannot be written.
    """
    if whole:
        raise DeltaLensError(
            fault_list("format 'shira' has no place for what trained whole:", whole)
        )
    if odd := [name for name, layer in layers.items() if rows_are_inputs(layer.module)]:
        raise DeltaLensError(
            fault_list("format 'shira': peft adapts nn.Linear only, which these are not:", odd)
        )
    deltas = {
        each.name.removesuffix(".weight"): (each.shape, each.indices, each.values)
        for each in differences
    }
    write_shira(Path(path), deltas, getattr(model, "name_or_path", None))


def layers_by_weight(model: nn.Module) -> dict[str, Layer]:
    """A model's linear layers.

    Args:
        model: any model.

    Returns:
        Parameter name of the weight -> layer.
    """
    return {layer.weight_name: layer for layer in linear_layers(model)}


def shape_of(layer: Layer) -> tuple[int, int]:
    """The shape of a layer's weight.

    Args:
        layer: a linear layer.

    Returns:
        Its rows and columns.
    """
    rows, columns = layer.module.get_parameter("weight").shape
    return int(rows), int(columns)


def _weight(layer: Layer) -> Tensor:
    return layer.module.get_parameter("weight").detach()
