"""The one place where transformers and peft load what lies in a folder.

From the folder alone and never from the hub; weights from safetensors, never from a pickle; and no
code that a checkpoint brings, unless the caller says that it is trusted. transformers and peft
would ask on standard input, fall back on pickles, or follow a name to another folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import CheckpointError, is_library_error
from deltalens.io.plain_json import read_settings

__all__ = ["class_of", "empty_model", "own_code", "read_adapter", "read_model", "read_tokenizer"]

_ADAPTER = "adapter_config.json"
_IMPLEMENTATION = "_implementation"
_LOADS_ANOTHER = ("XLORA", "SHADOW")
"""Kinds of adapters that name further models, which peft loads by itself."""


def class_of(config: Mapping[str, Any]) -> Any | None:
    """The class of transformers' that a configuration names; None where it has no such model."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


def read_model(
    folder: Path, loader: Any, *, dtype: Any, trust: bool | None = None, **spec: Any
) -> tuple[Any, dict[str, Any]]:
    """A model from the safetensors of a folder, and transformers' report on its loading.

    Args:
        folder: with `config.json` and the weights.
        loader: a class of transformers'; or one of its `Auto` classes.
        dtype: of the parameters; "auto": as stored.
        trust: run the folder's own code. None: whoever asks has no option for that.
        spec: further arguments of `from_pretrained`.

    Raises:
        CheckpointError: the folder asks for code or for another model.
        Exception: transformers cannot load it, or its own code cannot, which promise no kind.
    """
    if (folder / _ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: holds {_ADAPTER} beside a whole model: transformers would put that adapter "
            "on it. Move the adapter's files into a folder of their own"
        )
    model, report = _read(
        loader.from_pretrained,
        folder,
        trust,
        use_safetensors=True,
        output_loading_info=True,
        dtype=dtype,
        **spec,
    )
    return model, report


def read_tokenizer(folder: Path, trust: bool | None = None) -> Any:
    """The tokenizer of a folder; arguments and errors as for `read_model`."""
    from transformers import AutoTokenizer

    return _read(AutoTokenizer.from_pretrained, folder, trust)


def read_adapter(model: Any, folder: Path) -> Any:
    """A model with the adapter of a folder on it, not to be trained. The base that the adapter
    names is not looked at.

    Raises:
        CheckpointError: the adapter asks for code, or for another model.
        Exception: of peft, which promises no kind.
    """
    from peft import PeftModel

    config = read_settings(folder / _ADAPTER)
    if (kind := config.get("peft_type")) in _LOADS_ANOTHER:
        raise CheckpointError(f"{folder}: a {kind} adapter loads further models; it is not merged")
    if config.get("megatron_config"):
        raise CheckpointError(
            f"{folder}: its {_ADAPTER} asks for a module to be imported (megatron_config), which "
            "is not done: set it to null"
        )
    return PeftModel.from_pretrained(
        model, str(folder), is_trainable=False, local_files_only=True, use_safetensors=True
    )


def empty_model(settings: Mapping[str, Any]) -> Any | None:
    """The model of a configuration without memory for its weights; None where transformers does
    not know it.

    Raises:
        Exception: of transformers, on a configuration of any kind, which promises no kind.
    """
    import torch
    import transformers

    loader = class_of(settings)
    if (loader is None and "auto_map" in settings) or _hub_code(settings) is not None:
        return None
    if loader is not None:
        known: Any = loader.config_class
    else:
        known = type(transformers.AutoConfig.for_model(str(settings.get("model_type"))))
    config = known.from_dict(dict(settings))
    with torch.device("meta"):
        if loader is not None:
            return loader(config)
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _read(load: Callable[..., Any], folder: Path, trust: bool | None, **spec: Any) -> Any:
    """Call one of transformers' loaders, after a look at what the folder asks for."""
    for name in ("config.json", "tokenizer_config.json"):
        _check(folder / name, bool(trust))
    try:
        return load(folder, local_files_only=True, trust_remote_code=bool(trust), **spec)
    except BaseException as error:
        if trust or not is_library_error(error) or "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(own_code(folder, trust)) from error


def own_code(folder: Path, trust: bool | None) -> str:
    """What is said of a checkpoint that needs code of its own; `trust` as for `read_model`."""
    if trust is None:
        return (
            f"{folder}: needs code of the checkpoint's own, which is never run here: take a model "
            "whose architecture and tokenizer transformers has"
        )
    return (
        f"{folder}: needs code of the checkpoint's own, which is not run unless you have read it, "
        "trust it, and say so (trust_remote_code, --trust-remote-code)"
    )


def _check(file: Path, trust: bool) -> None:
    """Refuse what would be loaded from elsewhere, whether code is trusted or not: trust is in this
    folder."""
    if not file.is_file():
        return
    config = read_settings(file)
    if (code := _hub_code(config)) is not None:
        raise CheckpointError(
            f"{file}: asks for code from the hub ({code[:100]!r}), which is not loaded: take the "
            "entry out"
        )
    named = config.get("auto_map")
    for places in named.values() if trust and isinstance(named, dict) else ():
        for place in places if isinstance(places, list) else [places]:
            if isinstance(place, str) and "--" in place:
                raise CheckpointError(
                    f"{file}: its code lies in another repository ({place[:100]!r}), which is not "
                    "loaded: copy the code into the folder, and read it"
                )


def _hub_code(config: Mapping[str, Any]) -> str | None:
    """A kernel of the hub that a configuration wants to compute with, at any depth."""
    found: list[Any] = [config]
    while found:
        held = found.pop()
        if isinstance(held, list):
            found += held
        elif isinstance(held, Mapping):
            for key, value in held.items():
                wanted = list(value.values()) if isinstance(value, Mapping) else [value]
                if str(key).endswith(_IMPLEMENTATION):
                    for one in wanted:
                        if isinstance(one, str) and set("/:|") & set(one):
                            return one
            found += held.values()
    return None
