"""Small damages by the thousand: harmless or a `DeltaLensError`; none hangs or leaves a trace."""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import signal
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import deltalens
from deltalens import DeltaLensError
from deltalens.evaluate.rows import read_rows
from deltalens.studies.drop_asked import FidelityTexts
from tests.bad_input.files import (
    INDEX,
    SHARDS,
    SINGLE,
    left_in,
    save,
    save_llama_pair,
    save_sharded,
    tuned,
    weights,
)

SECONDS = 10
FEW, MANY = 50, 500
"""Cases of each of the four kinds."""

DEEP, HUGE = "@deep@", "@huge@"
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 63, 1 << 64, 10**400, -(1 << 63), 0.5, -1.5,
    1e308, float("nan"), float("inf"), "", "x", "F32", "I8", "F64", "F4", "../x.safetensors",
    "/etc/passwd", "a\0b", "\ud800", "\udcff", "line\nbreak", "x" * 100_000, SHARDS[0], SHARDS[1],
    [], {}, [[]], [0], [0, 0], [0, 8], [-4, 4], [8, 0], [1 << 62, 1 << 62, 0], {"a": "b"},
    list(range(1000)), DEEP, HUGE,
]  # fmt: skip


class TooLong(BaseException):
    """A case took more than its time; no handler of ordinary errors may take it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in the block when it takes longer."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Mutator:
    """Damages files, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def damage_bytes(self, content: bytes) -> bytes:
        """Some bytes flipped, overwritten, cut out, doubled, added or lost at the end."""
        at, size = self.draw.randrange(len(content) + 1), 1 + int(self.draw.expovariate(0.1))
        piece = content[at : at + size]
        new = self.draw.choice(
            [
                bytes(byte ^ (1 << self.draw.randrange(8)) for byte in piece[:3]),
                bytes(len(piece)),
                b"\xff" * len(piece),
                self.draw.randbytes(len(piece)),
                b"",
                piece + piece,
                self.draw.randbytes(size) + piece,
            ]
        )
        cut = content[:at] if self.draw.random() < 0.15 else content[at + len(piece) :]
        return cut if len(cut) == at else content[:at] + new + cut

    def damage_json(self, value: Any) -> str:
        """Some places of a JSON value with another value, another name, lost or doubled."""
        value = copy.deepcopy(value)
        for _ in range(self.draw.choice([1, 1, 1, 2, 3])):
            self._damage(value)
        if self.draw.random() < 0.05:
            value = self.draw.choice(ODD)
        text = json.dumps(value)
        if self.draw.random() < 0.15:
            text = self._double(text)
        return text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(
            f'"{HUGE}"', "9" * 5_000
        )

    def _damage(self, value: Any) -> None:
        holder = value
        while True:
            keys = list(holder if isinstance(holder, dict) else range(len(holder)))
            if not keys:
                return
            key = self.draw.choice(keys)
            deeper = isinstance(holder[key], (dict, list))
            if not deeper or not holder[key] or self.draw.random() < 0.2:
                break
            holder = holder[key]
        action = self.draw.random()
        if action < 0.6:
            holder[key] = copy.deepcopy(self.draw.choice(ODD))
        elif action < 0.75:
            del holder[key]
        elif isinstance(holder, dict):
            name = self.draw.choice([odd for odd in ODD if isinstance(odd, str)])
            holder[name] = holder.pop(key) if action < 0.9 else copy.deepcopy(holder[key])
        elif isinstance(holder[key], int):
            holder[key] += self.draw.choice([-4, -1, 1, 4, 1 << 40])

    def _double(self, text: str) -> str:
        """One key twice in the same object, the second time with a value of its own."""
        keys = list(re.finditer(r'"[^"\\]*": ', text))
        if not keys:
            return text
        key = self.draw.choice(keys)
        odd = json.dumps(self.draw.choice(ODD))
        return f"{text[: key.start()]}{key.group()}{odd}, {text[key.start() :]}"

    def damage_shard(self, content: bytes) -> bytes:
        """Bytes anywhere, bytes of the header, its length, its JSON, or the data."""
        length = int.from_bytes(content[:8], "little")
        header, data = content[8 : 8 + length], content[8 + length :]
        kind = self.draw.randrange(6)
        if kind == 0:
            return self.damage_bytes(content)
        if kind == 1:
            header = self.damage_bytes(header)
        elif kind in (2, 3):
            header = self.damage_json(json.loads(header)).encode()
        elif kind == 4:
            data = self.damage_bytes(data)
        else:
            length += self.draw.choice([-8, -1, 1, 8, 1 << 20, 1 << 62, -length])
            return length.to_bytes(8, "little") + header + data
        if self.draw.random() < 0.1:
            return content[:8] + header + data
        return len(header).to_bytes(8, "little") + header + data

    def damage_text(self, content: bytes) -> bytes:
        """An index or a configuration: its bytes, or its JSON."""
        if self.draw.random() < 0.3:
            return self.damage_bytes(content)
        return self.damage_json(json.loads(content)).encode()

    def damage_rows(self, content: bytes) -> bytes:
        """A file of rows: its bytes, or the JSON of one row."""
        if self.draw.random() < 0.3:
            return self.damage_bytes(content)
        lines = content.splitlines()
        place = self.draw.randrange(len(lines))
        lines[place] = self.damage_json(json.loads(lines[place])).encode()
        return b"\n".join(lines)


def both(root: Path) -> None:
    """Inspect the pair, then drop from it; what one accepts the other does."""
    ft, base, out = root / "ft", root / "base", root / "out"
    try:
        deltalens.inspect(ft, base, root / "anatomy")
    except DeltaLensError:
        with pytest.raises(DeltaLensError):
            deltalens.drop(ft, base, out)
        raise
    asked: dict[str, Any] = {"strategy": "random", "rate": "0.3"}
    try:
        deltalens.drop(ft, base, out, rescale=True, **asked)
    except DeltaLensError as error:
        # Numbers as large as no model's: only what rescaling makes of them is refused.
        if "rescaled at rate 0.3" not in str(error):
            raise
        deltalens.drop(ft, base, out, **asked)
    for shard in out.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as written:
            assert written.keys()


def verdict(run: Callable[[Path], object], root: Path, file: Path, damaged: bytes) -> str:
    """How one damaged file was taken: `used`, `refused`, or what went wrong."""
    sound = file.read_bytes()
    file.write_bytes(damaged)
    before = left_in(root)
    try:
        with time_limit(SECONDS):
            run(root)
        found = "used"
    except DeltaLensError as error:
        found = "refused" if 10 < len(str(error)) < 20_000 else f"a message like {error}"[:300]
        left = left_in(root) - before
        found = f"{sorted(left)} left after {error}" if left else found
    except TooLong:
        found = f"took longer than {SECONDS} s"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"[:300]
    finally:
        file.write_bytes(sound)
    for name in left_in(root) - before:
        (root / name).is_file() and (root / name).unlink()
    for name in sorted(left_in(root) - before, reverse=True):
        (root / name).rmdir()
    return found


def check_cases(
    run: Callable[[Path], object],
    root: Path,
    files: dict[Path, Callable[[Mutator, bytes], bytes]],
    count: int,
    refused: float,
) -> None:
    """So many damages, drawn over the files; at least this share of them has to be noticed."""
    wrong, seen = [], {"used": 0, "refused": 0}
    for seed in range(count):
        file, damage = list(files.items())[seed % len(files)]
        damaged = damage(Mutator(seed), file.read_bytes())
        found = verdict(run, root, file, damaged)
        if found in seen:
            seen[found] += 1
        else:
            wrong.append(f"seed {seed}, {file.name}: {found}")
    assert not wrong, "\n".join(wrong)
    assert seen["refused"] >= refused * count, seen


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a fine-tune in two shards, and its base."""
    base = weights()
    save_sharded(tmp_path / "ft", tuned(base))
    save(tmp_path / "base", base)
    return tmp_path


COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_shards_are_refused_or_harmless(models: Path, count: int) -> None:
    shards = [models / "ft" / SHARDS[0], models / "ft" / SHARDS[1], models / "base" / SINGLE]
    check_cases(both, models, dict.fromkeys(shards, Mutator.damage_shard), count, 0.6)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_indexes_are_refused_or_harmless(models: Path, count: int) -> None:
    check_cases(both, models, {models / "ft" / INDEX: Mutator.damage_text}, count, 0.4)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_configurations_are_refused_or_harmless(models: Path, count: int) -> None:
    config = {"tie_word_embeddings": True, "vocab_size": 6, "text_config": {"vocab_size": 6}}
    files = [models / model / "config.json" for model in ("ft", "base")]
    for file in files:
        file.write_text(json.dumps(config))
    check_cases(both, models, dict.fromkeys(files, Mutator.damage_text), count, 0.1)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_rows_are_refused_or_harmless(tmp_path: Path, count: int) -> None:
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    rows = {
        "answers": [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(5)],
        "texts": [{"text": "once upon a time"}, {"text": "there was"}],
        "talks": [{"messages": talk}, {"messages": talk * 2}],
    }
    files = [tmp_path / f"{name}.jsonl" for name in rows]
    for file, held in zip(files, rows.values(), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in held))

    def read(root: Path) -> None:
        for file in files:
            for row in read_rows(file).rows:
                repr(row).encode()
                assert row.text or row.completion

    check_cases(read, tmp_path, dict.fromkeys(files, Mutator.damage_rows), count, 0.4)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_packed_rows_and_tables_are_refused_or_harmless(tmp_path: Path, count: int) -> None:
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    rows = [{"messages": talk, "tools": [{"name": {"of": "it"}}]}] * 30
    packed, table, array, saved = (tmp_path / name for name in ("a.gz", "b.parquet", "c.json", "d"))
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), table)
    array.write_text(json.dumps(rows))
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "e.arrow"}]}))
    made = pa.Table.from_pylist(rows)
    with pa.OSFile(str(saved / "e.arrow"), "wb") as out, pa.ipc.new_stream(out, made.schema) as to:
        to.write_table(made)

    def read(root: Path) -> None:
        for file in (packed, table, array, saved):
            for row in read_rows(file).rows:
                repr(row).encode()
                assert row.completion

    files = [packed, table, array, saved / "state.json", saved / "e.arrow"]
    check_cases(read, tmp_path, dict.fromkeys(files, Mutator.damage_bytes), count, 0.5)


@pytest.mark.slow
def test_a_study_of_a_damaged_configuration_is_refused_or_runs(tmp_path: Path) -> None:
    save_llama_pair(tmp_path)

    def study(root: Path) -> None:
        deltalens.drop_study(
            root / "ft",
            root / "base",
            root / "study",
            rates="0.5",
            strategies=["trivial"],
            fidelity=FidelityTexts(sequences=2, new_tokens=4),
        )

    files = {tmp_path / "ft" / "config.json": Mutator.damage_text}
    check_cases(study, tmp_path, files, 60, 0.1)


def test_a_verdict_notices_every_kind_of_misbehaviour(models: Path) -> None:
    file = models / "ft" / INDEX

    def leave_a_trace(root: Path) -> None:
        (root / ".out.part").mkdir()
        raise DeltaLensError("the disk is full, and so on")

    def fail(root: Path) -> None:
        raise KeyError("weight_map")

    def hang(root: Path) -> None:
        with time_limit(0.01):
            while True:
                pass

    assert "left after the disk is full" in verdict(leave_a_trace, models, file, b"")
    assert verdict(fail, models, file, b"") == "KeyError: 'weight_map'"
    assert "took longer" in verdict(hang, models, file, b"")
    assert verdict(lambda root: None, models, file, b"") == "used"
