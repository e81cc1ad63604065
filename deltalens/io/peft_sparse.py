"""Sparse adapters in peft's formats: SHiRA, written and read, and Super-Tuning, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deltalens.errors import CheckpointError, DeltaLensError, errors_from, fault_list
from deltalens.io.files import write_whole
from deltalens.io.folders import new_folder
from deltalens.io.plain_json import read_settings
from deltalens.io.sparse_file import StoredEntries

__all__ = ["is_peft_folder", "read_peft_sparse", "write_shira"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_peft_folder(path: Path) -> bool:
    """Whether a path is a folder in which peft has saved an adapter.

    Args:
        path: any path.

    Returns:
        True if it has the adapter's configuration.
    """
    return (path / _CONFIG).is_file()


def write_shira(
    folder: Path, deltas: Mapping[str, tuple[tuple[int, int], Tensor, Tensor]], base: str | None
) -> int:
    """Write an adapter that `PeftModel.from_pretrained` loads as SHiRA.

    SHiRA has r * (inputs + outputs) entries in each layer, with one r for all: shorter lists are
    filled up with zeros at (0, 0), which changes nothing.

    Args:
        folder: the folder to write; new.
        deltas: layer name -> shape (outputs, inputs), flat indices and what is added there.
        base: the base's name or folder, for the configuration.

    Returns:
        r.

    Raises:
        DeltaLensError: r * (inputs + outputs) exceeds a layer, or nothing can be written.
    """
    from safetensors.torch import save

    rank = max((-(-flat.numel() // sum(shape)) for shape, flat, _ in deltas.values()), default=1)
    rank = max(1, rank)
    small = [
        f"{name}: {list(shape)}"
        for name, (shape, _, _) in deltas.items()
        if rank * sum(shape) > shape[0] * shape[1]
    ]
    if small:
        raise DeltaLensError(
            fault_list(
                f"SHiRA has one r for all layers; the fullest needs r = {rank}, and then it would "
                "have more entries than there are in",
                small,
            )
            + "; save it in our own format, or train with scope='tensor'"
        )
    tensors: dict[str, Tensor] = {}
    for name, (shape, flat, values) in deltas.items():
        size = rank * sum(shape)
        wide = flat.cpu().to(torch.int64)
        places, numbers = torch.zeros(2, size, dtype=torch.int32), torch.zeros(size)
        places[0, : len(wide)] = wide // shape[1]
        places[1, : len(wide)] = wide % shape[1]
        numbers[: len(wide)] = values.detach().cpu()
        tensors[f"{_PREFIX}{name}.shira_weight"] = numbers
        tensors[f"{_PREFIX}{name}.shira_indices"] = places
    config = {
        "peft_type": "SHIRA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "mask_type": "random",
        "target_modules": sorted(deltas),
        "fan_in_fan_out": False,
        "init_weights": True,
        "modules_to_save": None,
    }
    with new_folder(folder) as made:
        write_whole(made / _WEIGHTS, save(tensors, {"format": "pt"}))
        write_whole(made / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return rank


def read_peft_sparse(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> list[StoredEntries]:
    """Read a SHiRA or Super-Tuning adapter.

    Args:
        folder: as peft has written it.
        shapes: layer name -> shape of its weight, of the model that it is for.

    Returns:
        The entries of each weight; peft does not say which base it is for.

    Raises:
        CheckpointError: it is damaged, of another kind, or does not fit these layers.
    """
    from safetensors.torch import load_file

    kind = str(read_settings(folder / _CONFIG).get("peft_type"))
    suffix = {"SHIRA": "shira_", "SUPERTUNING": "supertuning_"}.get(kind)
    if suffix is None:
        raise CheckpointError(
            f"{folder}: an adapter of peft_type {kind}; sparse ones can be read (SHIRA, "
            "SUPERTUNING). peft's merge_and_unload makes a checkpoint of any"
        )
    with errors_from("safetensors", f"{folder / _WEIGHTS}: cannot be read"):
        tensors = load_file(folder / _WEIGHTS)
    named = "shira_weight" if kind == "SHIRA" else "supertuning_values"
    layers = sorted(
        name.removeprefix(_PREFIX).removesuffix(f".{named}")
        for name in tensors
        if name.startswith(_PREFIX) and name.endswith(f".{named}")
    )
    if not layers:
        raise CheckpointError(f"{folder}: {_WEIGHTS} holds no {kind} entries")
    if missing := [name for name in layers if name not in shapes]:
        raise CheckpointError(
            fault_list(f"{folder}: not for this model, which has no such linear layers:", missing)
        )
    known = {f"{_PREFIX}{name}.{part}" for name in layers for part in (named, f"{suffix}indices")}
    if others := sorted(tensors.keys() - known):
        raise CheckpointError(fault_list(f"{folder}: has more than sparse entries:", others))
    return [
        _entries(
            f"{folder}: {name}",
            name,
            shapes[name],
            tensors[f"{_PREFIX}{name}.{named}"],
            tensors.get(f"{_PREFIX}{name}.{suffix}indices"),
        )
        for name in layers
    ]


def _entries(
    where: str, name: str, shape: tuple[int, int], values: Tensor, places: Tensor | None
) -> StoredEntries:
    if places is None:
        raise CheckpointError(
            f"{where}: has no indices (save_precomputed_indices=False?); save them, too"
        )
    # SHiRA has rows and columns, Super-Tuning flat indices.
    split = places.dim() == 2 and len(places) == 2
    if (
        not (split or places.dim() == 1)
        or values.shape != places.shape[-1:]
        or places.dtype not in (torch.int32, torch.int64)
        or not values.is_floating_point()
    ):
        raise CheckpointError(
            f"{where}: values {_told(values)} and indices {_told(places)} do not belong together"
        )
    wide = places.to(torch.int64)
    limits = torch.tensor(shape if split else [shape[0] * shape[1]]).unsqueeze(1)
    if bool(((wide < 0) | (wide >= limits)).any()):
        raise CheckpointError(f"{where}: its entries do not fit shape {list(shape)}")
    flat = wide[0] * shape[1] + wide[1] if split else wide
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{where}: a value is not finite")
    # What is listed several times is added several times.
    unique, slots = flat.unique(sorted=True, return_inverse=True)
    summed = torch.zeros(len(unique)).index_add_(0, slots, values.to(torch.float32))
    return StoredEntries(f"{name}.weight", shape, "", unique, summed)


def _told(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
