"""A checkpoint's fingerprint is of every byte, its identity of all that decides its numbers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import CheckpointError
from deltalens.io import fingerprint
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.fingerprint import BLOCK, fingerprint_of, take_fingerprints
from tests.support.oracles.pairs import write_checkpoint
from tests.support.profile import repeatable
from tests.support.training_folders import write_model

SIZE = 5 * BLOCK + 12_345
"""Larger than what is sampled, hashed at once, or too small to be remembered."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("large") / "file"
    torch.manual_seed(0)
    file.write_bytes(torch.randint(256, (SIZE,), dtype=torch.uint8).numpy().tobytes())
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache: an empty one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "deltalens" / "fingerprints.json"


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file was written long ago."""
    monkeypatch.setattr(fingerprint, "SETTLED_NANOSECONDS", -1)


def reads(file: Path) -> int:
    """How many blocks are read for a file's fingerprint."""
    read: list[int] = []
    fingerprint_of(file, read.append)
    return sum(read)


@pytest.mark.property
@repeatable(25)
@given(place=st.integers(0, SIZE - 1), flipped=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_another_fingerprint(
    large: Path, place: int, flipped: int
) -> None:
    before = fingerprint_of(large)
    with large.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ flipped]))
    try:
        assert fingerprint_of(large) != before
    finally:
        with large.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([byte]))
    assert fingerprint_of(large) == before


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SIZE])
def test_it_is_what_the_documentation_says(large: Path, tmp_path: Path, size: int) -> None:
    content = large.read_bytes()[:size]
    (tmp_path / "part").write_bytes(content)
    blocks = [content[at : at + (4 << 20)] for at in range(0, size, 4 << 20)]
    digests = b"".join(xxhash.xxh3_128(block).digest() for block in blocks)
    wanted = xxhash.xxh3_128(size.to_bytes(8, "little") + digests).hexdigest()
    assert fingerprint_of(tmp_path / "part") == wanted


@pytest.mark.usefixtures("old")
def test_a_large_file_is_read_once(large: Path) -> None:
    first = fingerprint_of(large)
    assert reads(large) == 0
    assert fingerprint_of(large) == first


@pytest.mark.usefixtures("old")
def test_a_change_that_keeps_size_and_mtime_is_seen(large: Path) -> None:
    before, status = fingerprint_of(large), large.stat()
    with large.open("r+b") as stream:
        stream.seek(SIZE // 2)
        (byte,) = stream.read(1)
        stream.seek(SIZE // 2)
        stream.write(bytes([byte ^ 1]))
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert large.stat().st_mtime_ns == status.st_mtime_ns
    assert fingerprint_of(large) != before


def test_what_was_just_written_is_not_remembered(large: Path, cache: Path) -> None:
    large.touch()
    fingerprint_of(large)
    assert not cache.exists()
    assert reads(large) == 6


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda file: file.write_text("{"),
    "a list": lambda file: file.write_text("[]"),
    "a changed digit": lambda file: file.write_text(file.read_text().replace('": "', '": "0', 1)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_passed_over(large: Path, cache: Path, damage: str) -> None:
    found = fingerprint_of(large)
    DAMAGE[damage](cache)
    assert fingerprint_of(large) == found


@pytest.mark.usefixtures("old")
def test_no_place_for_a_cache_costs_nothing_but_time(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = fingerprint_of(large)
    assert reads(large) == 6
    assert fingerprint_of(large) == found


@pytest.mark.usefixtures("old")
def test_the_cache_holds_the_latest_files_only(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "MOST_CACHED", 1)
    other = large.with_name("other")
    other.write_bytes(large.read_bytes())
    fingerprint_of(large)
    fingerprint_of(other)
    assert (reads(other), reads(large)) == (0, 6)


def test_a_file_that_changes_while_it_is_read_is_said_to(large: Path) -> None:
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        fingerprint_of(large, lambda blocks: large.touch())


def test_progress_is_told_of_large_files_only(large: Path, tmp_path: Path) -> None:
    wide = torch.zeros(5 * BLOCK // 4)
    folder = write_checkpoint(tmp_path / "model", {"w": wide, "v": wide}, [["w"], ["v"]])
    told: list[tuple[object, object]] = []
    take_fingerprints(
        [open_checkpoint(folder)],
        lambda name, total: told.append((name, total)),
        lambda done, total: told.append((done, total)),
    )
    # Each shard has five blocks of data and one that the header begins.
    assert told == [("reading the weights", 12), *((done, 12) for done in range(1, 13))]
    told.clear()
    take_fingerprints(
        [open_checkpoint(write_checkpoint(tmp_path / "small", {"w": wide[:9]}))],
        lambda name, total: told.append((name, total)),
        lambda done, total: told.append((done, total)),
    )
    assert told == []


BESIDE = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja"),
    *("chat_template.json", "additional_chat_templates/rag.jinja", "modeling_own.py"),
]


@pytest.mark.parametrize("name", BESIDE)
def test_every_file_that_decides_a_number_is_in_the_identity(tmp_path: Path, name: str) -> None:
    file = write_model(tmp_path / "model") / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    before = open_checkpoint(tmp_path / "model").identity
    with file.open("a") as stream:
        stream.write(" ")
    after = open_checkpoint(tmp_path / "model").identity
    assert {part for part in before if before[part] != after[part]} == {name}


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "deltalens.json", "train.json"])
def test_what_decides_none_is_not(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    before = open_checkpoint(folder).identity
    (folder / name).write_text("{}")
    assert open_checkpoint(folder).identity == before
