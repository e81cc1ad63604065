"""A checkpoint of very many tensors, as a large mixture of experts has them: time grows with their
number, not with its square."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltalens.errors import DeltaLensError, similar_names
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing
from deltalens.io.writer import write_like
from deltalens.studies.slots import TensorLookup
from tests.support.checkpoint_files import INDEX, folder_with, shard_bytes

pytestmark = pytest.mark.bad_input

FEW, TIMES = 1_000, 5
GROWTH = 2.5 * TIMES
"""What five times the tensors may take, in units of what they took: quadratic is 25, and a busy
machine makes no 12 of 5."""
SHARDS = 10


def moe(count: int, root: str = "model.", experts: str = "experts") -> list[str]:
    """Names as a mixture of 256 experts a layer has them."""
    parts = ("gate_proj", "up_proj", "down_proj")
    return [
        f"{root}layers.{place // 768}.mlp.{experts}.{place // 3 % 256}.{parts[place % 3]}.weight"
        for place in range(count)
    ]


def save(folder: Path, names: list[str], shift: int = 0, config: object = {}) -> Path:
    """A sharded checkpoint by hand: one number in each tensor, another in each."""
    folder_with(folder, {"config.json": json.dumps(config)})
    size = -(-len(names) // SHARDS)
    weight_map = {}
    for start in range(0, len(names), size):
        held = names[start : start + size]
        header = {
            name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * at, 4 * at + 4]}
            for at, name in enumerate(held)
        }
        values = torch.arange(start + 1 + shift, start + 1 + shift + len(held)).float()
        shard = f"model-{start:06}.safetensors"
        folder_with(folder, {shard: shard_bytes(header, values.numpy().tobytes())})
        weight_map |= dict.fromkeys(held, shard)
    folder_with(folder, {INDEX: json.dumps({"metadata": {}, "weight_map": weight_map})})
    return folder


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, the best of two."""
    taken = []
    for _ in range(2):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def paired(ft: Path, base: Path, **how: object) -> Pairing | str:
    try:
        return pair(ft, base, **how)  # type: ignore[arg-type]
    except DeltaLensError as error:
        return str(error)


TIED = {"tie_word_embeddings": True}
ENDS = ["model.embed_tokens.weight", "lm_head.weight"]
PAIRS = {
    "the same names": lambda n: (moe(n), moe(n), {}),
    "a prefix in one": lambda n: (moe(n), moe(n, root=""), {}),
    "names that all differ": lambda n: ([f"trunk.{i}.kernel" for i in range(n)], moe(n), {}),
    "half of the names differ": lambda n: (
        moe(n)[: n // 2] + moe(n, experts="e")[n // 2 :],
        moe(n),
        {},
    ),
    "nearly all differ": lambda n: (moe(n, experts="e")[:-9] + moe(n)[-9:], moe(n), {}),
    "fewer in one": lambda n: (moe(n)[: 3 * n // 4], moe(n), {}),
    "fewer in one, strict": lambda n: (moe(n), moe(n)[: 3 * n // 4], {"strict": True}),
    "tied": lambda n: (ENDS + moe(n), ENDS[:1] + moe(n), {}),
    "nothing included": lambda n: (moe(n), moe(n), {"include": "no.such.tensor"}),
}


@pytest.mark.parametrize("which", PAIRS)
def test_pairing_takes_time_in_proportion_to_the_tensors(tmp_path: Path, which: str) -> None:
    taken = []
    for count in (FEW, TIMES * FEW):
        ft_names, base_names, how = PAIRS[which](count)
        ft = save(tmp_path / f"ft{count}", ft_names, 7, TIED)
        base = save(tmp_path / f"base{count}", base_names, 0, TIED)
        taken.append(seconds(lambda ft=ft, base=base, how=how: paired(ft, base, **how)))
    assert taken[1] < GROWTH * taken[0], taken


@pytest.mark.slow
def test_hundred_thousand_tensors_are_paired_in_seconds(tmp_path: Path) -> None:
    names = moe(100_000)
    ft, base = save(tmp_path / "ft", names, 7), save(tmp_path / "base", names)
    begun = time.process_time()
    assert len(pair(ft, base).pairs) == len(names)
    # 2 s on a quiet core: a bound far above what a busy machine makes of it.
    assert time.process_time() - begun < 8


def test_progress_of_an_inspection_is_by_a_sum_that_is_taken_once(tmp_path: Path) -> None:
    names = moe(20 * FEW)
    found = pair(save(tmp_path / "ft", names, 7), save(tmp_path / "base", names))
    unit = found.units("global")[0]
    begun = time.process_time()
    assert {(found.entries, unit.entries) for _ in names} == {(len(names), len(names))}
    assert time.process_time() - begun < 1  # Anew each time: 20 s.


def test_tensors_that_are_not_written_are_copied_in_proportion_to_their_number(
    tmp_path: Path,
) -> None:
    looks = []

    class Counted(dict):  # type: ignore[type-arg]
        def values(self):  # type: ignore[no-untyped-def]
            looks.append(len(self))
            return super().values()

    like = open_checkpoint(save(tmp_path / "ft", moe(FEW)))
    like.tensors = Counted(like.tensors)
    with write_like(like, tmp_path / "out", record=b"{}", copies={}):
        pass
    assert sum(looks) <= 2 * FEW  # In each of 10 shards anew: 10 times.
    for file in like.headers:
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_names_of_a_model_that_differ_by_a_prefix_are_found_in_proportion_to_their_number() -> None:
    def search(count: int) -> float:
        stored = {name: torch.empty(0) for name in moe(count)}
        spec = [f"base_model.{name}" for name in stored], moe(count, root="")

        def look() -> None:
            places = TensorLookup(stored)
            for names in spec:
                for name, found in zip(names, stored.values(), strict=True):
                    assert places.find(name) is found

        return seconds(look)

    few = search(FEW)
    assert search(TIMES * FEW) < GROWTH * few


def test_a_name_that_fits_several_tensors_of_a_model_is_none_of_them() -> None:
    stored = {name: torch.empty(0) for name in ("a.w", "b.w", "x.y.z", "z")}
    places = TensorLookup(stored)
    assert places.find("w") is None
    assert places.find("y.z") is None  # x.y.z ends in it, and it ends in z.
    assert places.find("q.a.w") is stored["a.w"]
    assert places.find("v") is None


@pytest.mark.parametrize("count", [10, 100_000])
def test_the_nearest_name_is_found_among_however_many(count: int) -> None:
    names = moe(count)
    begun = time.process_time()
    wanted = names[count // 2]
    assert similar_names(wanted.replace("experts", "xperts"), names, 1, 0.6) == [wanted]
    assert similar_names("a." * 150_000, names, 3, 0.9) == []
    assert time.process_time() - begun < 5  # By difflib alone: minutes.


def test_a_tensor_that_is_not_there_is_likened_to_those_that_are(tmp_path: Path) -> None:
    names = moe(100)
    checkpoint: Checkpoint = open_checkpoint(save(tmp_path / "ft", names))
    with pytest.raises(DeltaLensError, match=r"experts\.3\.up_proj"):
        checkpoint["model.layers.0.mlp.xperts.3.up_proj.weight"]
