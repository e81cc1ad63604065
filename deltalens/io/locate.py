"""From what a user names to a local folder: an existing path wins over a hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deltalens.errors import CheckpointError
from deltalens.io.folders import passing_folder

__all__ = ["locate", "located"]

_HUB_ID = re.compile(r"^(hf:)?([\w.-]+/[\w.-]+)(@([\w./-]+))?$")
_CODE = "*.py"
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
]


def locate(name: str, code: bool = False) -> Path:
    """A local folder or file for a path, or for a hub id `org/name[@revision]`.

    An existing path wins; `hf:org/name` forces the hub. From the hub come safetensors,
    configuration and tokenizer only, through its own cache; offline, a cached snapshot is used.

    Args:
        name: what the user gave.
        code: fetch the model's own code, too: only where it may be run.

    Raises:
        CheckpointError: neither a path nor a hub id, or the hub cannot give it.
    """
    if not name.startswith("hf:") and os.path.exists(name):
        return Path(name)
    match = _HUB_ID.match(name)
    if match is None or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(f"{name}: no such file or folder")
    wanted = [*_WANTED, _CODE] if code else _WANTED
    return _download(name, match.group(2), match.group(4), wanted)


def _download(name: str, repository: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder here, not in the hub's cache, and the hub cannot be reached. "
            "Give a folder, or download it once where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(f"{name}: no such folder here, and the hub says: {reason}") from error


@contextmanager
def located(
    ft: str, base: str, merge_adapter: bool = False, code: bool | None = None
) -> Iterator[tuple[Path, Path]]:
    """Both checkpoints as local paths; an adapter merged into its base, for as long as the block.

    Args:
        ft, base: what the user gave.
        merge_adapter: `ft` is an adapter, to be merged into `base` in a temporary folder.
        code: see `locate`. None: the command has no option that trusts it.

    Raises:
        CheckpointError: see `locate`; or the adapter cannot be merged.
    """
    with ExitStack() as stack:
        from deltalens.io.checkpoint import is_adapter

        ft_path, base_path = locate(ft, bool(code)), locate(base, bool(code))
        if not merge_adapter and is_adapter(ft_path):
            raise CheckpointError(
                f"{ft_path}: a PEFT adapter, not a whole model. Add --merge-adapter to merge it "
                "into its base in a temporary folder first."
            )
        if merge_adapter:
            from deltalens.io.adapters import merge_adapter as merge

            folder = stack.enter_context(passing_folder("deltalens-merged"))
            ft_path = merge(ft_path, base_path, folder, code)
        yield ft_path, base_path
