"""Resolving a path or a hub id to a local folder. An existing path wins over a hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deltalens.errors import CheckpointError
from deltalens.io.folders import temporary_folder

__all__ = ["locate", "located"]

_HUB_ID = re.compile(r"^(hf:)?([\w.-]+/[\w.-]+)(@([\w./-]+))?$")
_CODE = "*.py"
_DOWNLOADED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
]


def locate(name: str, code: bool = False) -> Path:
    """Resolve a path, or a hub id `org/name[@revision]`, to a local folder or file.

    An existing path wins; `hf:org/name` forces the hub. Only safetensors, configuration and
    tokenizer are downloaded, through the hub's own cache; offline, a cached snapshot is used.

    Args:
        name: the path or hub id.
        code: whether to download the model's own code, too: only if it may be run.

    Returns:
        The local path.

    Raises:
        CheckpointError: `name` is neither a path nor a hub id, or the download fails.
    """
    if not name.startswith("hf:") and os.path.exists(name):
        return Path(name)
    match = _HUB_ID.match(name)
    if match is None or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(f"{name}: no such file or folder")
    patterns = [*_DOWNLOADED, _CODE] if code else _DOWNLOADED
    return _download(name, match.group(2), match.group(4), patterns)


def _download(name: str, repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no local folder of this name, not in the hub's cache, and the hub cannot be "
            "reached. Name a local folder, or download the model once while online"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"{name}: no local folder of this name, and the hub reports: {reason}"
        ) from error


@contextmanager
def located(
    ft: str, base: str, merge_adapter: bool = False, code: bool | None = None
) -> Iterator[tuple[Path, Path]]:
    """Resolve a fine-tune and its base to local paths, merging an adapter if requested.

    Args:
        ft, base: paths or hub ids.
        merge_adapter: `ft` is an adapter, to be merged into `base` in a temporary folder that
            exists for the duration of the block.
        code: see `locate`. None means no, where the caller offers no such option.

    Yields:
        The local paths of the fine-tune and the base.

    Raises:
        CheckpointError: see `locate`; `ft` is an adapter and `merge_adapter` is false; or the
            adapter cannot be merged.
    """
    with ExitStack() as stack:
        from deltalens.io.checkpoint import is_adapter

        ft_path, base_path = locate(ft, bool(code)), locate(base, bool(code))
        if not merge_adapter and is_adapter(ft_path):
            raise CheckpointError(
                f"{ft_path}: a PEFT adapter, not a whole model. Set `merge_adapter` to merge it "
                "into its base in a temporary folder first."
            )
        if merge_adapter:
            from deltalens.io.adapters import merge_adapter as merge

            folder = stack.enter_context(temporary_folder("deltalens-merged"))
            ft_path = merge(ft_path, base_path, folder, code)
        yield ft_path, base_path
