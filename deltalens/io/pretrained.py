"""The only module in which transformers and peft load something from a folder.

Everything is loaded from that folder and never from the hub, weights from safetensors and never
from a pickle, and code that is stored with a checkpoint is run only if the caller trusts it. Left
to themselves, transformers and peft would prompt on standard input, fall back on pickles, or follow
a name to another folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import CheckpointError, is_library_error
from deltalens.io.plain_json import read_settings

__all__ = [
    "class_of",
    "classifier_of",
    "custom_code_message",
    "empty_model",
    "read_adapter",
    "read_model",
    "read_tokenizer",
]

_ADAPTER = "adapter_config.json"
_IMPLEMENTATION = "_implementation"
_LOADS_FURTHER_MODELS = ("XLORA", "SHADOW")
"""Kinds of adapters that name further models, which peft loads on its own."""


def class_of(config: Mapping[str, Any]) -> Any | None:
    """Look up the transformers class that a configuration names.

    Args:
        config: the content of `config.json`.

    Returns:
        The model class; None if transformers has no such class.
    """
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    attribute = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(attribute, type) and issubclass(attribute, transformers.PreTrainedModel)
    return attribute if is_model else None


def classifier_of(config: Mapping[str, Any]) -> Any | None:
    """Look up the transformers class that has a head over whole sequences on such a model.

    Args:
        config: the content of `config.json`.

    Returns:
        The model class; None if transformers has no such class.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    name = known.get(str(config.get("model_type")))
    return getattr(transformers, name, None) if isinstance(name, str) else None


def read_model(
    folder: Path, loader: Any, *, dtype: Any, trust: bool | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Load a model from the safetensors files of a folder.

    Args:
        folder: the folder with `config.json` and the weights.
        loader: a model class of transformers, or one of its `Auto` classes.
        dtype: dtype of the parameters; "auto": as stored.
        trust: whether to run code that is stored in the folder. None means no, where the caller
            offers no such option.
        options: further arguments of `from_pretrained`.

    Returns:
        The model, and transformers' loading report (`missing_keys`, `mismatched_keys`, ...).

    Raises:
        CheckpointError: the folder requires untrusted code or another model.
        Exception: of any kind, from transformers or from the folder's code.
    """
    if (folder / _ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: contains {_ADAPTER} beside a whole model, and transformers would apply "
            "that adapter to it. Move the adapter's files to another folder"
        )
    model, report = _read(
        loader.from_pretrained,
        folder,
        trust,
        use_safetensors=True,
        output_loading_info=True,
        dtype=dtype,
        **options,
    )
    return model, report


def read_tokenizer(folder: Path, trust: bool | None = None) -> Any:
    """Load the tokenizer of a folder.

    Args:
        folder: the folder with the tokenizer's files.
        trust: see `read_model`.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: the folder requires untrusted code.
        Exception: of any kind, from transformers or from the folder's code.
    """
    from transformers import AutoTokenizer

    return _read(AutoTokenizer.from_pretrained, folder, trust)


def read_adapter(model: Any, folder: Path) -> Any:
    """Apply the adapter of a folder to a model, for inference.

    Args:
        model: the base. The base that the adapter's configuration names is ignored.
        folder: the adapter's folder.

    Returns:
        The peft model.

    Raises:
        CheckpointError: the adapter requires code or a further model.
        Exception: of any kind, from peft.
    """
    from peft import PeftModel

    config = read_settings(folder / _ADAPTER)
    if (kind := config.get("peft_type")) in _LOADS_FURTHER_MODELS:
        raise CheckpointError(
            f"{folder}: a {kind} adapter, which loads further models and cannot be merged"
        )
    if config.get("megatron_config"):
        raise CheckpointError(
            f"{folder}: its {_ADAPTER} names a module to import (megatron_config), which deltalens "
            "does not do: set megatron_config to null"
        )
    return PeftModel.from_pretrained(
        model, str(folder), is_trainable=False, local_files_only=True, use_safetensors=True
    )


def empty_model(settings: Mapping[str, Any]) -> Any | None:
    """Build the model that a configuration describes, without memory for its weights.

    Args:
        settings: the content of `config.json`.

    Returns:
        The model, on torch's meta device; None if it needs code that transformers does not have.

    Raises:
        Exception: of any kind, from transformers.
    """
    import torch
    import transformers

    loader = class_of(settings)
    if (loader is None and "auto_map" in settings) or _hub_code(settings) is not None:
        return None
    if loader is not None:
        config_class: Any = loader.config_class
    else:
        config_class = type(transformers.AutoConfig.for_model(str(settings.get("model_type"))))
    config = config_class.from_dict(dict(settings))
    with torch.device("meta"):
        if loader is not None:
            return loader(config)
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _read(load: Callable[..., Any], folder: Path, trust: bool | None, **options: Any) -> Any:
    """Call one of transformers' loaders, after checking what the folder's settings require."""
    for name in ("config.json", "tokenizer_config.json"):
        _check(folder / name, bool(trust))
    try:
        return load(folder, local_files_only=True, trust_remote_code=bool(trust), **options)
    except BaseException as error:
        if trust or not is_library_error(error) or "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(custom_code_message(folder, trust)) from error


def custom_code_message(folder: Path, trust: bool | None) -> str:
    """Word the error for a checkpoint that needs code stored with it.

    Args:
        folder: the checkpoint's folder.
        trust: as passed to `read_model`; None if the caller offers no such option.

    Returns:
        The message.
    """
    if trust is None:
        return (
            f"{folder}: needs code that is stored with the checkpoint, which this command never "
            "runs: use a model whose architecture and tokenizer are part of transformers"
        )
    return (
        f"{folder}: needs code that is stored with the checkpoint, which is not run by default: "
        "read the code and, if you trust it, set `trust_remote_code`"
    )


def _check(file: Path, trust: bool) -> None:
    """Refuse settings that load code from elsewhere, even if the folder's own code is trusted."""
    if not file.is_file():
        return
    config = read_settings(file)
    if (code := _hub_code(config)) is not None:
        raise CheckpointError(
            f"{file}: names code on the hub ({code[:100]!r}), which deltalens does not load: "
            "remove the entry"
        )
    auto_map = config.get("auto_map")
    for entry in auto_map.values() if trust and isinstance(auto_map, dict) else ():
        for reference in entry if isinstance(entry, list) else [entry]:
            if isinstance(reference, str) and "--" in reference:
                raise CheckpointError(
                    f"{file}: its code is in another repository ({reference[:100]!r}), which "
                    "deltalens does not load: read that code, and copy it into the folder"
                )


def _hub_code(config: Mapping[str, Any]) -> str | None:
    """A hub kernel that a configuration selects at any depth; None if there is none."""
    pending: list[Any] = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, Mapping):
            for key, value in part.items():
                choices = list(value.values()) if isinstance(value, Mapping) else [value]
                if str(key).endswith(_IMPLEMENTATION):
                    for choice in choices:
                        if isinstance(choice, str) and set("/:|") & set(choice):
                            return choice
            pending += part.values()
    return None
