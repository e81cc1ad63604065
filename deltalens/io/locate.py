"""From what a user names to a local folder: an existing path wins over a hub id."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deltalens.errors import CheckpointError

__all__ = ["locate", "located"]

_HUB_ID = re.compile(r"^(hf:)?([\w.-]+/[\w.-]+)(@([\w./-]+))?$")
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
]


def locate(name: str) -> Path:
    """A local folder or file for a path, or for a hub id `org/name[@revision]`.

    An existing path wins; `hf:org/name` forces the hub. From the hub come safetensors,
    configuration and tokenizer only, through its own cache; offline, a cached snapshot is used.

    Raises:
        CheckpointError: neither a path nor a hub id, or the hub cannot give it.
    """
    if not name.startswith("hf:") and os.path.exists(name):
        return Path(name)
    match = _HUB_ID.match(name)
    if match is None or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(f"{name}: no such file or folder")
    return _download(name, match.group(2), match.group(4))


def _download(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder here, not in the hub's cache, and the hub cannot be reached. "
            "Give a folder, or download it once where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(f"{name}: no such folder here, and the hub says: {reason}") from error


@contextmanager
def located(ft: str, base: str, merge_adapter: bool = False) -> Iterator[tuple[Path, Path]]:
    """Both checkpoints as local paths; an adapter merged into its base, for as long as the block.

    Raises:
        CheckpointError: see `locate`; or the adapter cannot be merged.
    """
    with ExitStack() as stack:
        ft_path, base_path = locate(ft), locate(base)
        if merge_adapter:
            from deltalens.io.adapters import merge_adapter as merge

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deltalens-merged-"))
            ft_path = merge(ft_path, base_path, Path(folder))
        yield ft_path, base_path
