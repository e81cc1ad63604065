"""Platforms and file systems that lack a call get the same bytes in the plainer way."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deltalens
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io import platform
from deltalens.io.records import StudyFolder
from tests.support.checkpoint_files import left_in, save, tuned, weights

CALLS = ("posix_fadvise", "posix_fallocate", "preadv")
LACKING = [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


def refuses(number: int) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def dropped(tmp_path: Path) -> Callable[[], bytes]:
    """A drop, as bytes; each anew."""
    base = weights()
    ft, base_path = save(tmp_path / "ft", tuned(base)), save(tmp_path / "base", base)
    count = iter(range(10))

    def run() -> bytes:
        out = tmp_path / f"out{next(count)}"
        deltalens.drop(ft, base_path, out, rate="0.5")
        return (out / "model.safetensors").read_bytes()

    return run


@pytest.mark.parametrize("call", [*CALLS, "all"])
def test_platform_without_a_call_writes_the_same_bytes(
    dropped: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    wanted = dropped()
    for name in CALLS if call == "all" else (call,):
        monkeypatch.delattr(os, name)
    assert dropped() == wanted


@pytest.mark.parametrize("number", LACKING)
@pytest.mark.parametrize("call", [*CALLS, "all"])
def test_file_system_without_a_call_gets_the_same_bytes(
    dropped: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    wanted = dropped()
    for name in CALLS if call == "all" else (call,):
        monkeypatch.setattr(os, name, refuses(number))
    assert dropped() == wanted


@pytest.mark.parametrize("number", LACKING)
def test_file_system_that_syncs_no_folder_is_written_to(
    dropped: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    wanted = dropped()
    monkeypatch.setattr(os, "fsync", refuses(number))
    assert dropped() == wanted


def test_full_disk_is_no_lacking_call(
    dropped: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuses(errno.ENOSPC))
    before = left_in(tmp_path)
    with pytest.raises(DeltaLensError, match="no space left"):
        dropped()
    assert left_in(tmp_path) == before


def test_a_reserved_file_has_its_size_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.delattr(os, "posix_fallocate")
        with (tmp_path / name).open("wb") as stream:
            platform.reserve(stream.fileno(), 12_345)
        assert (tmp_path / name).stat().st_size == 12_345


def test_a_large_tensor_is_read_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """macOS refuses to read 2 GiB at once."""
    monkeypatch.setattr(platform, "MOST_BYTES", 7)
    path = save(tmp_path, weights())
    found = deltalens.open_checkpoint(path).read("model.embed_tokens.weight")
    assert torch.equal(found, weights()["model.embed_tokens.weight"])


@pytest.mark.parametrize("number", [*LACKING, errno.ENOLCK])
def test_file_system_without_locks_holds_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuses(number))
    StudyFolder.open(tmp_path / "s", "inspect", {}, ("level", "name")).close()


def test_study_that_another_process_writes_is_refused_still(tmp_path: Path) -> None:
    held = StudyFolder.open(tmp_path / "s", "inspect", {}, ("level", "name"))
    try:
        with pytest.raises(RecordError, match="another process is writing"):
            StudyFolder.open(tmp_path / "s", "inspect", {}, ("level", "name"))
    finally:
        held.close()
