"""Headers and bytes are what the safetensors library says they are."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltalens.errors import CheckpointError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.header import FLOATS, read_header
from deltalens.io.reader import TensorReader, torch_dtype
from tests.support.oracles.pairs import make, same_bits, write_checkpoint

pytestmark = pytest.mark.parity

FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def everything() -> dict[str, Tensor]:
    """Tensors of every dtype, of several shapes, with names that need escapes."""
    stored: dict[str, Tensor] = {}
    shapes = [(), (1,), (7,), (3, 5), (2, 0, 4), (0,), (2, 3, 4, 5)]
    for at, dtype in enumerate(FLOAT_DTYPES):
        for number, shape in enumerate(shapes):
            n = torch.Size(shape).numel()
            stored[f"t.{at}.{number}"] = make("any", n, dtype, at + number).view(shape)
    for dtype in OTHERS:
        stored[f"other.{dtype}"] = torch.arange(6).to(dtype).view(2, 3)
    stored['a "quoted"\n\\ name'] = torch.ones(3)
    stored["Größe \U0001f600"] = torch.zeros(2, 2, dtype=torch.bfloat16)
    stored[" "] = torch.ones(1)
    return stored


def library_view(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


@pytest.mark.parametrize("shards", [None, 1, 4], ids=["single", "one shard", "four shards"])
def test_names_shapes_dtypes_and_bytes(shards: int | None, tmp_path: Path) -> None:
    stored = everything()
    names = list(stored)
    hands = [names[at::shards] for at in range(shards)] if shards else None
    folder = write_checkpoint(tmp_path / "model", stored, hands)
    found = open_checkpoint(folder)
    files = sorted(folder.glob("*.safetensors"))
    assert sorted(found.headers) == files
    seen = set()
    for file in files:
        content = file.read_bytes()
        view, tensors = library_view(file), load_file(file)
        assert content.startswith(found.headers[file])
        assert int.from_bytes(content[:8], "little") == len(found.headers[file]) - 8
        for name, (dtype, shape) in view.items():
            entry = found.tensors[name]
            seen.add(name)
            assert (entry.name, entry.dtype, entry.shape, entry.file) == (name, dtype, shape, file)
            assert entry.numel == tensors[name].numel()
            raw = tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert content[entry.begin : entry.end] == raw
            if dtype in FLOATS:
                assert torch_dtype(entry) == stored[name].dtype
                assert same_bits(found.read(name), stored[name])
    assert seen == set(found.tensors) == set(stored)
    places = [(e.file, e.begin, e.end) for e in found.tensors.values()]
    assert places == sorted(places)


def test_a_file_alone_reads_like_its_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", everything(), config={"model_type": "x"})
    whole, alone = open_checkpoint(folder), open_checkpoint(folder / "model.safetensors")
    assert whole.tensors == alone.tensors
    assert whole.fingerprint == alone.fingerprint
    assert whole.folder == alone.folder
    assert whole.config == alone.config == {"model_type": "x"}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_reading_by_range(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: make("any", 1000, dtype, at) for at, name in enumerate("abc")}
    found = open_checkpoint(write_checkpoint(tmp_path / "model", stored, [["c"], ["a", "b"]]))
    reader, draw = TensorReader(), random.Random(0)
    for _ in range(200):
        name = draw.choice("abc")
        start = draw.randrange(1001)
        stop = draw.randint(start, 1000)
        buffer = torch.empty(1010, dtype=dtype)
        buffer[stop - start :] = 5
        reader.read(found[name], start, buffer[: stop - start])
        assert same_bits(buffer[: stop - start], stored[name][start:stop])
        assert bool((buffer[stop - start :] == 5).all())
    for start, size in ((990, 11), (1000, 1), (5000, 1)):
        with pytest.raises(IndexError):
            reader.read(found["b"], start, torch.empty(size, dtype=dtype))
    reader.close()
    reader.read(found["b"], 3, buffer[:4])
    assert same_bits(buffer[:4], stored["b"][3:7])


def test_an_unknown_name_shows_the_nearest(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path / "m", {"model.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"model\.weight"):
        found.read("model.weihgt")


def test_a_file_that_shrank_is_reported(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", {"w": torch.ones(100)})
    found = open_checkpoint(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="ended"):
        found.read("w")


# --- what the format does not allow ---------------------------------------------------------------


def raw(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(begin: int, end: int, shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


def numbered(text: str) -> bytes:
    """A header whose numbers JSON's writer would not give."""
    return f'{{"a":{{"dtype":"F32","shape":{text},"data_offsets":[0,8]}}}}'.encode()


BAD: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "header length of all ones": b"\xff" * 8 + b"{}",
    "no JSON": raw(b"hello", b""),
    "no object": raw([1], b""),
    "no UTF-8": raw(b'{"\xff": 1}', b""),
    "cut JSON": raw(b'{"a": {', b""),
    "unknown dtype": raw({"a": f32(0, 8) | {"dtype": "F33"}}, bytes(8)),
    "negative shape": raw({"a": f32(0, 8, [-2])}, bytes(8)),
    "shape of another size": raw({"a": f32(0, 8, [3])}, bytes(8)),
    "shape of a fraction": raw(numbered("[2.5]"), bytes(8)),
    "shape of text": raw(numbered('["2"]'), bytes(8)),
    "no list": raw(numbered("2"), bytes(8)),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "three offsets": raw({"a": f32(0, 8) | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "offsets reversed": raw({"a": f32(0, 8) | {"data_offsets": [8, 0]}}, bytes(8)),
    "hole": raw({"a": f32(0, 8), "b": f32(12, 16)}, bytes(16)),
    "hole at the start": raw({"a": f32(4, 8)}, bytes(8)),
    "overlap": raw({"a": f32(0, 8), "b": f32(4, 12)}, bytes(12)),
    "truncated": raw({"a": f32(0, 8)}, bytes(7)),
    "longer": raw({"a": f32(0, 8)}, bytes(9)),
    "metadata of numbers": raw({"__metadata__": {"a": 1}, "b": f32(0, 8)}, bytes(8)),
    "size beyond 64 bits": raw({"a": f32(0, 8, [1 << 62, 1 << 62])}, bytes(8)),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_what_the_library_refuses_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(SafetensorError):
        library_view(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_name_given_twice_is_refused_though_the_library_takes_it(tmp_path: Path) -> None:
    one = json.dumps(f32(0, 8))
    content = raw(f'{{"a":{one},"a":{one}}}'.encode(), bytes(8))
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="more than once"):
        read_header(file)


@pytest.mark.parametrize("padding", [0, 1, 7, 500])
def test_headers_padded_by_spaces(padding: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    text = json.dumps({"w": f32(0, 8)}).encode() + b" " * padding
    file.write_bytes(raw(text, struct.pack("<2f", 1.5, -2.0)))
    assert library_view(file) == {"w": ("F32", (2,))}
    assert open_checkpoint(file).read("w").tolist() == [1.5, -2.0]


def fuzzed(content: bytes, draw: random.Random) -> bytes:
    """The content with a few bytes of the header changed, removed or repeated."""
    length = int.from_bytes(content[:8], "little") + 8
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(min(length, len(changed)))
        action: Callable[[], None] = draw.choice(
            [
                lambda at=at: changed.__setitem__(at, draw.randrange(256)),
                lambda at=at: changed.__setitem__(at, draw.choice(b'0123456789{}[]",:FB')),
                lambda at=at: changed.__delitem__(at),
                lambda at=at: changed.insert(at, draw.choice(b'0129{}[]",: ')),
            ]
        )
        action()
    return bytes(changed)


@pytest.mark.parametrize("count", [1500, pytest.param(15_000, marks=pytest.mark.slow)])
def test_damaged_headers_are_errors_or_read_as_the_library_reads_them(
    count: int, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    stored = {"a": torch.ones(3), "bb": torch.zeros(2, 2, dtype=torch.bfloat16)}
    save_file(stored, file, metadata={"format": "pt"})
    whole, draw = file.read_bytes(), random.Random(1)
    accepted = 0
    for _ in range(count):
        file.write_bytes(fuzzed(whole, draw))
        try:
            _, entries = read_header(file)
        except CheckpointError:
            continue
        accepted += 1
        ours = {entry.name: (entry.dtype, entry.shape) for entry in entries}
        assert ours == library_view(file), file.read_bytes()
    assert accepted


# --- shards and their index -----------------------------------------------------------------------


def spoil_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update(a="gone.safetensors"), "gone"),
        (lambda index: index["weight_map"].update(a="../x.safetensors"), "x.safetensors"),
        (lambda index: index["weight_map"].update(a=3), "'a'"),
        (lambda index: index.pop("weight_map"), "weight_map"),
        (lambda index: index.update(weight_map={}), "weight_map"),
        (lambda index: index.update(weight_map=[1]), "weight_map"),
    ],
)
def test_an_index_that_names_no_shards(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    stored = {name: torch.ones(4) for name in "abc"}
    folder = write_checkpoint(tmp_path / "model", stored, [["a", "b"], ["c"]])
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    spoil_index(folder, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    stored = {name: torch.ones(4) for name in "abc"}
    folder = write_checkpoint(tmp_path / "model", stored, [["a", "b"], ["c"]])
    save_file({"a": torch.ones(4), "c": torch.ones(4)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="'a'"):
        open_checkpoint(folder)


def test_a_checkpoint_without_floats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="I64"):
        open_checkpoint(write_checkpoint(tmp_path / "model", {"ids": torch.arange(4)}))


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path) -> None:
    one = {"w": make("normal", 5000, torch.float32, 0)}
    other = {"w": one["w"].clone()}
    other["w"][4321] += 1
    prints = [
        open_checkpoint(write_checkpoint(tmp_path / str(at), stored)).fingerprint
        for at, stored in enumerate((one, one, other, {"v": one["w"]}))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
