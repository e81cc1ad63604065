"""A checkpoint that cannot be read is refused with the file, the fault, and a way on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import deltalens
from deltalens import DeltaLensError, open_checkpoint
from deltalens.io.locate import locate
from tests.support.checkpoint_files import (
    INDEX,
    SHARDS,
    SINGLE,
    f32,
    folder_with,
    save,
    save_llama_pair,
    save_sharded,
    shard_bytes,
    weights,
    write_index,
)

pytestmark = pytest.mark.bad_input


def refusal(path: Path) -> str:
    with pytest.raises(DeltaLensError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def refusal_of_shard(tmp_path: Path, content: bytes) -> str:
    folder = folder_with(tmp_path / "model", {SINGLE: content})
    message = refusal(folder)
    assert message.startswith(f"{folder / SINGLE}: ")
    return message


def test_a_path_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such file or folder"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_missing_file(name: str) -> None:
    assert refusal(Path(name)) == f"{Path(name)}: no such file or folder"
    with pytest.raises(DeltaLensError, match="no such file or folder"):
        locate(f"/{name}")


def test_a_folder_without_safetensors_says_what_is_wanted(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {"README.md": "", "config.json": "{}"})
    assert refusal(folder) == (
        f"{folder}: no safetensors file in this folder; name the folder that holds {SINGLE}, or "
        f"{INDEX} and its shards"
    )


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "weights.pt", "last.ckpt", "consolidated.pth"]
)
def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path / "model", {name: b"\x80\x04."})
    message = refusal(folder)
    assert message.startswith(f"{folder}: only pickled weights ({name}), which can run code")
    assert f"M.from_pretrained('{folder}').save_pretrained('{folder}-st')\"" in message
    assert "only pickled" not in refusal(folder / name)
    assert f"save_pretrained('{folder}-st')" in refusal(folder / name)


@pytest.mark.slow
def test_the_line_that_converts_pickles_does(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.support.models import tiny

    folder = tmp_path / "model"
    model = tiny("llama", vocab_size=8)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    line = refusal(folder).splitlines()[-1].strip()
    assert line.startswith("python -c ")
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True, timeout=120)
    assert "model.norm.weight" in open_checkpoint(f"{folder}-st").tensors


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {"notes.txt": "weights"})
    assert refusal(folder / "notes.txt") == (
        f"{folder / 'notes.txt'}: not a safetensors file. Name a folder with a model in it, or a "
        ".safetensors file"
    )


def test_an_adapter_is_refused_with_what_merges_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "lora", {"adapter_model.safetensors": shard_bytes({})})
    assert "a PEFT adapter, not a whole model; merge it into its base first" in refusal(folder)


def test_several_files_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {"a.safetensors": b"", "b.safetensors": b""})
    assert f"2 safetensors files, and no {INDEX}" in refusal(folder)


def test_a_folder_with_one_file_and_an_index_is_read_as_transformers_does(tmp_path: Path) -> None:
    folder = save(save_sharded(tmp_path / "model", weights(0)), weights(1))
    assert set(open_checkpoint(folder).headers) == {folder / SINGLE}


def test_an_index_that_names_a_missing_shard_names_it_and_the_tensor(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "model", weights())
    (folder / SHARDS[1]).unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX} names shards that are missing; is the download")
    assert f"'model.norm.weight' is in '{SHARDS[1]}', which is not in this folder" in message


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "/etc/out.safetensors", "a\\b.safetensors", "a\0.safetensors"]
)
def test_an_index_that_names_a_path_outside_the_folder_is_refused(
    tmp_path: Path, shard: str
) -> None:
    save(tmp_path, weights()).joinpath(SINGLE).rename(tmp_path / "out.safetensors")
    folder = folder_with(tmp_path / "model", {})
    write_index(folder, {"model.norm.weight": shard})
    message = refusal(folder)
    assert (
        f"'model.norm.weight' is in {shard!r}, which is not the name of a file in this folder"
        in message
    )


@pytest.mark.parametrize("shard", ["config.json", "", "..", None, 7, ["a"], {}])
def test_an_index_whose_shard_is_no_safetensors_file_is_refused(
    tmp_path: Path, shard: object
) -> None:
    folder = folder_with(tmp_path / "model", {"config.json": "{}"})
    write_index(folder, {"w": shard})
    assert f"'w' is in {shard!r}, which is not a .safetensors file" in refusal(folder)


@pytest.mark.parametrize("shard", ["x" * 300 + ".safetensors", "\ud800.safetensors"])
def test_an_index_whose_shard_no_file_can_be_called_is_refused(tmp_path: Path, shard: str) -> None:
    folder = folder_with(tmp_path / "model", {})
    write_index(folder, {"w": shard})
    assert "which is not in this folder" in refusal(folder)


DISAGREEING = {
    "names a tensor that no shard holds": (
        lambda index: {**index, "model.norm.bias": SHARDS[0]},
        f"'model.norm.bias' is not in '{SHARDS[0]}'",
    ),
    "has a tensor in the wrong shard": (
        lambda index: {**index, "model.norm.weight": SHARDS[0]},
        f"'model.norm.weight' is not in '{SHARDS[0]}'",
    ),
    "leaves a stored tensor out": (
        lambda index: {name: shard for name, shard in index.items() if "norm" not in name},
        "'model.norm.weight' is in a shard only",
    ),
}


@pytest.mark.parametrize("how", DISAGREEING)
def test_an_index_that_disagrees_with_its_shards_is_read_as_transformers_does(
    tmp_path: Path, how: str
) -> None:
    change, why = DISAGREEING[how]
    ft, base = save_llama_pair(tmp_path)
    model = LlamaForCausalLM.from_pretrained(ft)
    model.save_pretrained(ft, max_shard_size="2KB")
    (ft / "model.safetensors").unlink()
    shards = sorted(file.name for file in ft.glob("model-*.safetensors"))
    index = json.loads((ft / INDEX).read_text())["weight_map"]
    named = {SHARDS[0]: next(s for s in shards if s != index["model.norm.weight"])}
    index = {name: named.get(shard, shard) for name, shard in change(index).items()}
    write_index(ft, index)
    loaded = LlamaForCausalLM.from_pretrained(ft).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    found = open_checkpoint(ft)
    assert set(found.tensors) == set(loaded)
    assert why.replace(SHARDS[0], named[SHARDS[0]]) in found.notes[0]
    assert found.notes[0] in deltalens.pair(ft, base).notes
    deltalens.drop(ft, base, tmp_path / "out", rate=1)
    dropped = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    wanted = LlamaForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(dropped[name], tensor) for name, tensor in wanted.items())


def test_all_faults_of_an_index_come_at_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {})
    write_index(folder, {f"w{i}": "gone.safetensors" for i in range(30)})
    message = refusal(folder)
    assert message.count("\n  - ") == 20
    assert message.endswith("... and 10 more")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}']
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = folder_with(tmp_path / "model", {INDEX: text})
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: ")
    assert any(said in message for said in ("not valid JSON", "not a JSON object", "no weight_map"))


def test_a_tensor_in_two_shards_is_refused_with_both(tmp_path: Path) -> None:
    files = {shard: shard_bytes({"w": f32()}, bytes(8)) for shard in SHARDS}
    folder = folder_with(tmp_path / "model", files)
    write_index(folder, dict(zip("wv", SHARDS, strict=True)))
    said = f"{folder}: tensor 'w' is stored twice, in {SHARDS[0]} and in {SHARDS[1]}"
    assert refusal(folder) == said


def test_a_header_longer_than_the_file_is_told_with_both_lengths(tmp_path: Path) -> None:
    message = refusal_of_shard(tmp_path, shard_bytes({"w": f32()}, length=5_000))
    size = len(shard_bytes({"w": f32()}))
    assert message.endswith(
        f"it starts with a header length of 5,000 bytes, and has {size} bytes in all; download or "
        "copy it again"
    )


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 100])
def test_a_file_too_short_for_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "truncated, or not a safetensors file" in refusal_of_shard(tmp_path, content)


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {SINGLE: shard_bytes({}, length=100_000_001)})
    with (folder / SINGLE).open("r+b") as stream:
        stream.truncate(100_000_100)
    assert "its header has 100,000,001 bytes; the format allows 100 MB" in refusal(folder)


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    message = refusal_of_shard(tmp_path, pointer)
    assert message.endswith("a Git LFS pointer, not the weights; fetch them with `git lfs pull`")


@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000])
def test_a_header_that_is_not_json_is_refused(tmp_path: Path, header: bytes) -> None:
    assert "its header is not valid JSON" in refusal_of_shard(tmp_path, shard_bytes(header))


def test_a_header_that_is_no_object_is_refused(tmp_path: Path) -> None:
    assert "its header is not a JSON object" in refusal_of_shard(tmp_path, shard_bytes([1]))


@pytest.mark.parametrize("metadata", [1, [], {"a": 1}, {"a": {"b": "c"}}])
def test_metadata_that_is_not_text_is_refused(tmp_path: Path, metadata: object) -> None:
    content = shard_bytes({"__metadata__": metadata, "w": f32()}, bytes(8))
    assert "__metadata__ is not an object of strings" in refusal_of_shard(tmp_path, content)


def test_a_header_that_names_a_tensor_twice_names_it(tmp_path: Path) -> None:
    entry = json.dumps(f32()).encode()
    content = shard_bytes(b'{"w": ' + entry + b', "w": ' + entry + b"}", bytes(8))
    assert refusal_of_shard(tmp_path, content).endswith("its header names 'w' more than once")


def test_one_name_twice_among_very_many_is_found_at_once(tmp_path: Path) -> None:
    names = [*range(100_000), 7]
    header = "{" + ",".join(f'"w{name}": {{}}' for name in names) + "}"
    begun = time.monotonic()
    assert "'w7' more than once" in refusal_of_shard(tmp_path, shard_bytes(header.encode()))
    assert time.monotonic() - begun < 5


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    content = shard_bytes({"v": f32(), "w": f32(begin=4)}, bytes(12))
    message = refusal_of_shard(tmp_path, content)
    assert message.endswith("tensor 'w' (F32 [2]) overlaps the one before it")


def test_a_hole_between_tensors_is_refused(tmp_path: Path) -> None:
    content = shard_bytes({"v": f32(), "w": f32(begin=12)}, bytes(20))
    assert refusal_of_shard(tmp_path, content).endswith("'w' (F32 [2]) leaves a gap before it")


def test_offsets_beyond_the_file_are_told_with_both_ends(tmp_path: Path) -> None:
    header = {"w": f32(entries=100)}
    begin = len(shard_bytes(header))
    message = refusal_of_shard(tmp_path, shard_bytes(header, bytes(8)))
    assert f"truncated: its tensors end at byte {begin + 400} of {begin + 8}; dow" in message


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    content = shard_bytes({"w": f32()}, bytes(9))
    assert "longer than its header says: its tensors end at" in refusal_of_shard(tmp_path, content)


@pytest.mark.parametrize(
    "offsets", [[8, 0], [-8, 0], [0], [0, 4, 8], "0:8", [0.0, 8.0], [0, 1 << 64], [False, 8], None]
)
def test_offsets_that_are_no_range_are_refused(tmp_path: Path, offsets: object) -> None:
    content = shard_bytes({"w": f32(data_offsets=offsets)}, bytes(8))
    message = refusal_of_shard(tmp_path, content)
    assert "tensor 'w': " in message
    assert "are not two positions in the file" in message or "does not fill bytes" in message


@pytest.mark.parametrize("shape", [[3], [-1, -2], [2.0], [True, 2], "2", [1 << 64], None, [[2]]])
def test_a_shape_that_the_bytes_do_not_fit_is_refused(tmp_path: Path, shape: object) -> None:
    message = refusal_of_shard(tmp_path, shard_bytes({"w": f32(shape=shape)}, bytes(8)))
    assert "tensor 'w': " in message
    assert "is not a tensor's shape" in message or "does not fill bytes 0 to 8" in message


@pytest.mark.parametrize(
    "shape", [[0, 1 << 62, 1 << 62], [1 << 62, 1 << 62, 0], [1] * 65, [(1 << 63) - 1] * 300_000]
)
def test_a_shape_that_no_tensor_can_have_is_refused_at_once(
    tmp_path: Path, shape: list[int]
) -> None:
    content = shard_bytes({"w": f32(shape=shape, data_offsets=[0, 0])})
    begun = time.monotonic()
    message = refusal_of_shard(tmp_path, content)
    assert "is not a tensor's shape" in message
    assert len(message) < 1000
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("dtype", ["F31", "", "f32", None, 32, ["F32"]])
def test_an_unknown_dtype_is_named(tmp_path: Path, dtype: object) -> None:
    message = refusal_of_shard(tmp_path, shard_bytes({"w": f32(dtype=dtype)}, bytes(8)))
    assert message.endswith(f"tensor 'w': unknown dtype {dtype!r}")


@pytest.mark.parametrize("entry", [None, [], 3, {}, {"dtype": "F32"}, {**f32(), "more": 1}])
def test_an_entry_that_is_none_is_refused(tmp_path: Path, entry: object) -> None:
    message = refusal_of_shard(tmp_path, shard_bytes({"w": entry}))
    assert message.endswith("tensor 'w': its entry is not {dtype, shape, data_offsets}")


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    message = refusal_of_shard(tmp_path, shard_bytes({"w\ud800": f32()}, bytes(8)))
    assert message.endswith("tensor 'w\\ud800': its name is not valid Unicode")


def test_a_hostile_header_does_not_fill_the_terminal(tmp_path: Path) -> None:
    content = shard_bytes({"w" * 1_000_000: f32(dtype="x" * 1_000_000)})
    assert len(refusal_of_shard(tmp_path, content)) < 1000


def test_names_may_look_like_paths_and_hold_odd_characters(tmp_path: Path) -> None:
    names = ["../../w", "/etc/passwd", "a\0b", "line\nbreak", ""]
    header = {name: f32(begin=8 * place) for place, name in enumerate(names)}
    content = shard_bytes(header, bytes(8 * len(names)))
    folder = folder_with(tmp_path / "model", {SINGLE: content})
    assert list(open_checkpoint(folder).tensors) == names


def test_weights_without_any_float_are_refused_with_their_dtypes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", {"w": torch.ones(4, dtype=torch.int8)})
    message = refusal(folder)
    assert message.startswith(f"{folder}: no floating-point tensor (I8). ")
    assert message.endswith("use the checkpoint from before quantization.")


def test_an_empty_safetensors_file_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {SINGLE: shard_bytes({})})
    assert refusal(folder) == f"{folder}: no tensor in it at all"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "nul"])
def test_a_broken_configuration_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "model", weights())
    (folder / "config.json").write_text(text)
    with pytest.raises(DeltaLensError, match=r"config\.json: not (valid JSON|a JSON object)"):
        _ = open_checkpoint(folder).config


def test_a_file_that_shrinks_while_it_is_read_is_said_to(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "model", weights()))
    with (tmp_path / "model" / SINGLE).open("r+b") as stream:
        stream.truncate(400)
    last = list(checkpoint.tensors)[-1]
    with pytest.raises(DeltaLensError, match=f"ended while '{last}'.* was being read"):
        checkpoint.read(last)


def test_a_file_that_is_gone_when_it_is_read_is_said_to_be(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "model", weights()))
    (tmp_path / "model" / SINGLE).unlink()
    with pytest.raises(DeltaLensError, match="cannot be read: No such file"):
        checkpoint.read("model.norm.weight")
    with pytest.raises(DeltaLensError, match="cannot be read: No such file"):
        _ = checkpoint.fingerprint


def test_a_hole_of_a_terabyte_is_no_checkpoint(tmp_path: Path) -> None:
    size = 1 << 40
    header = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    folder = folder_with(tmp_path / "model", {SINGLE: shard_bytes(header)})
    with (folder / SINGLE).open("r+b") as stream:
        stream.truncate(len(shard_bytes(header)) + size)
    with pytest.raises(
        DeltaLensError, match=r"a sparse file, not weights: 1,099,511,\d+,\d+ bytes long"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_configuration_or_an_index_longer_than_any_is_not_read(tmp_path: Path, name: str) -> None:
    save_sharded(tmp_path / "model", weights())
    with (tmp_path / "model" / name).open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DeltaLensError, match=r"more than 100,000,000 bytes, too large for a mod"):
        open_checkpoint(tmp_path / "model").config  # noqa: B018
