"""An output that cannot be written is refused before any work, and a full disk leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import deltalens
from deltalens import DeltaLensError
from tests.support.checkpoint_files import SINGLE, left_in, save, save_sharded, tuned, weights

pytestmark = pytest.mark.bad_input


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A fine-tune in two shards, and its base."""
    base = weights()
    return save_sharded(tmp_path / "in" / "ft", tuned(base)), save(tmp_path / "in" / "base", base)


def refusal_of_drop(models: tuple[Path, Path], out: Path, seen: list[int] | None = None) -> str:
    """The message; nothing was read beyond the headers unless `seen` says how much."""
    seen = [] if seen is None else seen
    root = models[0].parents[1]
    before = left_in(root)
    with pytest.raises(DeltaLensError) as caught:
        deltalens.drop(*models, out, progress=lambda done, total: seen.append(done))
    assert left_in(root) == before
    return str(caught.value)


def test_a_folder_that_holds_something_is_left_alone(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert refusal_of_drop(models, out) == (
        f"{out}: already exists and contains 'mine.txt'; remove it or choose another folder"
    )
    assert (out / "mine.txt").read_text() == "mine"


def test_a_folder_with_a_hidden_file_only_is_left_alone_too(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".git").touch()
    assert "contains '.git'" in refusal_of_drop(models, tmp_path / "out")


def test_an_empty_folder_may_be_filled(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    deltalens.drop(*models, tmp_path / "out")
    assert SINGLE.replace("model", "model-00001-of-00002") in left_in(tmp_path / "out")


def test_a_link_to_an_empty_folder_may_be_filled(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    deltalens.drop(*models, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "deltalens.json").is_file()


def test_an_empty_working_folder_may_be_filled(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    deltalens.drop(*models, ".")
    assert (tmp_path / "here" / "deltalens.json").is_file()


def test_a_file_is_not_written_over(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert refusal_of_drop(models, tmp_path / "out").endswith("is a file; choose another folder")


@pytest.mark.parametrize("given", [0, 1])
@pytest.mark.parametrize("inside", ["", "dropped", "a/b"])
def test_an_input_is_not_written_into(models: tuple[Path, Path], given: int, inside: str) -> None:
    out = models[given] / inside
    assert refusal_of_drop(models, out) == (
        f"{out}: is (or lies in) the input {models[given]}; choose another folder"
    )


def test_an_input_is_known_behind_links_and_dots(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(models[1])
    for out in (tmp_path / "link", tmp_path / "link" / "x", models[0] / ".." / "base"):
        assert "is (or lies in) the input" in refusal_of_drop(models, out)


def test_a_folder_that_holds_an_input_is_never_said_to_be_in_the_way(
    models: tuple[Path, Path],
) -> None:
    out = models[0].parent
    assert refusal_of_drop(models, out).startswith(f"{out}: contains the input ")


def test_a_folder_below_a_file_cannot_be_made(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal_of_drop(models, tmp_path / "file" / "out")
    assert message.endswith(f"cannot be created: {tmp_path / 'file'} is not a folder")


def test_a_folder_that_may_not_be_written_is_refused(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert refusal_of_drop(models, tmp_path / "out").endswith(f"{tmp_path} is not writable")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(
    models: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    assert "cannot be created: " in refusal_of_drop(models, tmp_path / name)


def test_a_loop_of_links_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "cannot be created: " in refusal_of_drop(models, tmp_path / "a")


def test_a_mount_point_is_refused_before_the_work(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    seen: list[int] = []
    message = refusal_of_drop(models, tmp_path / "out", seen)
    assert message.endswith("is a mount point; choose a new folder in it")
    assert not seen


def test_too_little_space_is_told_with_both_sizes_before_the_work(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 900, 100))
    needed = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))
    out, seen = tmp_path / "new" / "out", []
    message = refusal_of_drop(models, out, seen)
    assert message == (
        f"{out}: no space left: {needed} bytes needed, 100 bytes free on the disk of {tmp_path}; "
        "make room, or choose a folder on another disk"
    )
    assert not seen


def fail_with_full_disk(*given: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "function"),
    [
        (os, "posix_fallocate"),
        (os, "pwrite"),
        (os, "fsync"),
        (os, "replace"),
        (Path, "write_bytes"),
        (shutil, "copyfileobj"),
    ],
)
def test_a_disk_that_fills_up_leaves_nothing(
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    function: str,
) -> None:
    monkeypatch.setattr(where, function, fail_with_full_disk)
    out = tmp_path / "new" / "folders" / "out"
    assert refusal_of_drop(models, out) == f"{out}: cannot be written: no space left"


def test_a_disk_that_fills_up_half_way_leaves_nothing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, iter(range(100))

    def fill_up(descriptor: int, content: Any, at: int) -> int:
        return fail_with_full_disk() or 0 if next(calls) == 4 else write(descriptor, content, at)

    monkeypatch.setattr(os, "pwrite", fill_up)
    assert refusal_of_drop(models, tmp_path / "out").endswith("cannot be written: no space left")
    assert next(calls) > 4


def test_a_disk_that_fills_up_keeps_no_file_open(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, calls = os.posix_fallocate, iter(range(100))

    def fill_up(descriptor: int, at: int, size: int) -> None:
        fail_with_full_disk() if next(calls) else allocate(descriptor, at, size)

    monkeypatch.setattr(os, "posix_fallocate", fill_up)
    before = _open_files()
    refusal_of_drop(models, tmp_path / "out")
    assert _open_files() == before


def _open_files() -> list[str]:
    """What this process has open of files whose name is gone: their space is not free yet."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if link.is_symlink()]
    return sorted(target for target in targets if target.endswith("(deleted)"))


def test_a_file_that_grows_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    """A true refusal by the kernel: files may not grow beyond a limit."""
    import resource
    import signal

    base = {"w": torch.zeros(1 << 16)}
    models = save(tmp_path / "ft", {"w": torch.ones(1 << 16)}), save(tmp_path / "base", base)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(DeltaLensError, match="cannot be written: File too large"):
            deltalens.drop(*models, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert {path.name for path in tmp_path.iterdir()} == {"ft", "base"}


def test_an_interruption_leaves_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = left_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        deltalens.drop(*models, tmp_path / "new" / "out", progress=stop)
    assert left_in(tmp_path) == before


Records = Callable[[Path, Path, Path], object]


def test_records_are_not_written_into_a_folder_that_holds_something(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DeltaLensError, match=r"already exists and contains 'mine\.txt'"):
        deltalens.inspect(*models, out)
    assert left_in(out) == {"mine.txt"}


@pytest.mark.parametrize("given", [0, 1])
def test_records_are_not_written_into_an_input(models: tuple[Path, Path], given: int) -> None:
    with pytest.raises(DeltaLensError, match=r"is \(or lies in\) the input"):
        deltalens.inspect(*models, models[given] / "anatomy")


def test_an_inspection_does_not_wipe_out_a_study(models: tuple[Path, Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    manifest = {
        "format": 1,
        "deltalens": "0",
        "asked": {"kind": "drop-study"},
        "columns": [],
        "facts": {},
    }
    (study / "study.json").write_text(json.dumps(manifest))
    (study / "cells.jsonl").write_text("")
    with pytest.raises(DeltaLensError, match="drop-study"):
        deltalens.inspect(*models, study)
    assert left_in(study) == {"study.json", "cells.jsonl"}


def test_records_of_single_files_may_lie_beside_them(tmp_path: Path) -> None:
    ft, base = save(tmp_path / "ft", tuned(weights())), save(tmp_path / "base", weights())
    for folder in (ft, base):
        (folder / SINGLE).rename(tmp_path / f"{folder.name}.safetensors")
    files = tmp_path / "ft.safetensors", tmp_path / "base.safetensors"
    deltalens.inspect(*files, tmp_path / "anatomy")
    assert (tmp_path / "anatomy" / "cells.csv").is_file()


def test_records_that_do_not_fit_on_the_disk_leave_nothing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    before = left_in(tmp_path)
    with pytest.raises(DeltaLensError, match="no space left"):
        deltalens.inspect(*models, tmp_path / "anatomy")
    assert left_in(tmp_path) == before
