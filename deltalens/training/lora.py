"""Which layers of a model get a low-rank adapter, and the adapters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError, errors_from
from deltalens.methods.bypassed import behind_a_kernel
from deltalens.methods.mask_layers import linear_layers
from deltalens.methods.new_head import new_head
from deltalens.names import kind_of
from deltalens.scoring.sentences import labels_of

__all__ = ["adapted", "merged_state", "target_layers"]


def adapted(
    model: nn.Module,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str = "linear",
    begin: bool | str = True,
    seed: int | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """A model with a LoRA adapter on its linear layers but the head, as far as they fit.

    Left out are the layers of state-space mixers that fused kernels pass by, and those that peft
    refuses: each kind of layer is tried on a copy of the model without weights. Parameters that are
    no linear layers (fused experts) get no adapter. A head over sequences trains whole beside the
    adapters, as peft has it; so does whatever else is new.

    Args:
        model: a transformers model; peft changes it in place.
        rank, alpha, dropout: as in `peft.LoraConfig`.
        targets: which layers: see `target_layers`.
        begin: how an adapter begins, as `init_lora_weights` of `peft.LoraConfig`.
        seed: of what is random in that; None: the global generator goes on.

    Returns:
        The peft model, and what was left out and why, in sentences.

    Raises:
        DeltaLensError: peft is not installed, no layer is a target, or none fits (peft's reason is
            given).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DeltaLensError("LoRA needs peft: pip install 'deltalens[train]'") from error

    whole = _trained_whole(model)
    task = "SEQ_CLS" if whole else "CAUSAL_LM"

    def attach(where: nn.Module, names: Iterable[str], begin: bool | str = True) -> Any:
        config = LoraConfig(
            init_lora_weights=begin,  # type: ignore[arg-type]
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(names),
            task_type=task,
            modules_to_save=[*whole] or None,
        )
        with warnings.catch_warnings():
            # GPT-2's Conv1D keeps its weight the other way round: peft sees that for each layer.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            return get_peft_model(where, config)

    kind = type(model).__name__
    names, passed_by = target_layers(model, targets, whole)
    refusals: list[tuple[str, str]] = []
    if why := _refusal(attach, model, names):
        fitting: list[str] = []
        for leaf in dict.fromkeys(map(_leaf, names)):
            own = [name for name in names if _leaf(name) == leaf]
            if (why_not := _refusal(attach, model, own)) is None:
                fitting += own
            else:
                refusals.append((leaf, why_not))
        if not fitting:
            raise DeltaLensError(f"{kind} takes no LoRA: peft says: {why}")
        names = fitting
    drawn = nullcontext() if seed is None else _seeded(next(model.parameters()).device, seed)
    with errors_from("peft", f"{kind} takes no LoRA"), drawn:
        made = attach(model, names, begin)
    return made, _notes(model, names, passed_by, refusals, targets)


def merged_state(adapter: Any) -> dict[str, torch.Tensor]:
    """The tensors that the ordinary model would have if the adapters were merged now.

    Each weight is merged by peft, copied, and given its bits back: the result has the bits of
    `merge_and_unload`, and the model in training keeps its own.

    Args:
        adapter: the peft model.

    Returns:
        Name in the ordinary model -> tensor; copies of the adapted weights only.

    Raises:
        DeltaLensError: peft cannot merge an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain: Any = adapter.get_base_model()
    layers = {n: one for n, one in plain.named_modules() if isinstance(one, BaseTunerLayer)}
    state = {
        own: tensor
        for name, tensor in plain.state_dict().items()
        if (own := _plain_name(name, layers)) is not None
    }
    for name, layer in layers.items():
        weight: torch.Tensor = layer.get_base_layer().weight.data  # type: ignore[assignment]
        before = weight.clone()
        with errors_from("peft", "the adapters cannot be merged"):
            layer.merge()
            state[f"{name}.weight"] = weight.clone()
            layer.unmerge()
        weight.copy_(before)
    return state


def _plain_name(name: str, layers: Container[str]) -> str | None:
    """A tensor's name in the model without adapters; None if it is not in that model."""
    for own, part in ((".base_layer.", "."), (".modules_to_save.default.", ".")):
        name = name.replace(own, part)
    layer = name.partition(".lora_")[0]
    inside = ".original_module." in name or (layer != name and layer in layers)
    return None if inside else name


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from generators of this seed on a device and on the CPU; restore them afterwards."""
    if device.type == "cpu":
        # torch.manual_seed would also reseed every accelerator, which devices=[] does not undo.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng([device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def target_layers(
    model: nn.Module, targets: str = "linear", whole: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Choose the layers that get an adapter.

    Args:
        model: a transformers model; may be on the meta device.
        targets: `linear`: every linear layer but the head; `attention`: those of the attention, by
            their names; or names, separated by commas: each a layer's, or the end of one
            (`q_proj`).
        whole: names of modules that train whole beside the adapters, and get none.

    Returns:
        Names of the layers, and of those that are left out because a fused kernel passes them by.

    Raises:
        DeltaLensError: none is chosen, or a name matches none.
    """
    names, passed_by = _linear(model, whole)
    kind = type(model).__name__
    if not names:
        raise DeltaLensError(f"{kind}: has no linear layers that LoRA could adapt")
    if targets == "linear":
        return names, passed_by
    wanted = [name.strip() for name in targets.split(",")]
    if targets == "attention":
        chosen = [name for name in names if kind_of(name) == "attention"]
        unmatched = [] if chosen else [targets]
    else:
        chosen = [name for name in names if any(_ends(name, end) for end in wanted)]
        unmatched = [end for end in wanted if not any(_ends(name, end) for name in names)]
    if unmatched:
        raise DeltaLensError(
            f"targets {', '.join(unmatched)}: no such layers in {kind}; give attention, linear, or "
            f"names out of {', '.join(dict.fromkeys(map(_leaf, names)))}"
        )
    return chosen, []


def _ends(name: str, end: str) -> bool:
    return bool(end) and f".{name}".endswith(f".{end}")


def _trained_whole(model: nn.Module) -> tuple[str, ...]:
    """The modules of a head over sequences, and those of new parameters elsewhere; () if the model
    has no such head."""
    if labels_of(model) is None:
        return ()
    base: Any = getattr(model, "base_model", None)
    heads = [
        name
        for name, child in model.named_children()
        if child is not base and any(True for _ in child.parameters())
    ]
    owners = (name.rpartition(".")[0] for name in new_head(model))
    return tuple(dict.fromkeys([*heads, *(one for one in owners if not _within(one, heads))]))


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _linear(model: nn.Module, whole: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of linear layers but the head's, and those that a fused kernel passes by."""
    head_of: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = head_of()
    names: list[str] = []
    passed_by: list[str] = []
    for layer in linear_layers(model):
        if layer.module is head or _within(layer.name, whole):
            continue
        (passed_by if behind_a_kernel(model, layer.name) else names).append(layer.name)
    return names, passed_by


def _refusal(attach: Any, model: nn.Module, names: Sequence[str]) -> str | None:
    """Why these layers cannot be adapted; None if they can: tried without weights."""
    shell: Any = type(model)
    try:
        with torch.device("meta"):
            tried = shell(copy.deepcopy(model.config))
    except Exception:  # Of a model's own code, which promises no kind.
        # What cannot be built without weights is not tried: peft tells when it is adapted.
        return None
    try:
        with errors_from("peft", "refused"):
            made = attach(tried, names)
    except DeltaLensError as error:
        return str(error).partition("says: ")[2]
    got = {name.partition(".lora_A.")[0] for name, _ in made.named_parameters() if "lora_A" in name}
    wanted = {f"base_model.model.{name}" for name in names}
    if got == wanted:
        return None
    return "it adapts other parameters under these names"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _notes(
    model: nn.Module,
    names: Sequence[str],
    passed_by: Sequence[str],
    refusals: Sequence[Any],
    targets: str,
) -> tuple[str, ...]:
    said = []
    if passed_by:
        leaves = ", ".join(dict.fromkeys(map(_leaf, passed_by)))
        said.append(f"{leaves} of state-space mixers (fused kernels do not call them)")
    said += [f"{leaf} (peft: {why})" for leaf, why in refusals]
    fused = targets == "linear" and {
        name
        for module in model.modules()
        if not isinstance(module, nn.Conv1d | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    }
    if fused:
        said.append(f"{', '.join(sorted(fused))} (fused experts, no linear layers)")
    if not said:
        return ()
    on = ", ".join(dict.fromkeys(map(_leaf, names)))
    return (f"LoRA adapts {len(names)} layers ({on}), without {'; '.join(said)}",)
