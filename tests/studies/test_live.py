"""Whatever a study does to a live model, it does to the right memory, and takes it back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

import deltalens
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.matching import pair
from deltalens.numerics.hashing import name_key
from deltalens.numerics.selection import Selection
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.landscape.hessian import top_of_hessian
from deltalens.studies.live import LiveModel, LiveTensors
from deltalens.studies.selecting import DropSetting, select_unit
from deltalens.studies.slots import Slot, slots_of_checkpoint
from deltalens.studies.weights import StoredWeights
from tests.support.checkpoint_pairs import Kind, Pair, differing, plain, state_of, write_pair
from tests.support.cuts import resized

HEAD = "lm_head.weight"
KINDS = ["plain", "half", "fused experts", "transposed in the file", "copies held apart"]


class Stop(Exception):
    """Raised amid the work."""


def after(count: int) -> Callable[[], None]:
    """What raises the n-th time that it is called."""
    left = [count]

    def call() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Stop

    return call


@dataclass(frozen=True)
class Loaded:
    """The fine-tune of a pair, live."""

    kind: str
    folders: Pair
    model: Any

    def live(self) -> LiveModel:
        """To be edited."""
        ft, base = open_checkpoint(self.folders.ft), open_checkpoint(self.folders.base)
        return LiveModel(self.model, pair(ft, base))


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Loaded]:
    kind, folder = request.param, tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        if kind == "transposed in the file":
            transpose(patch)
        kinds = {
            "half": Kind("llama", torch.bfloat16, tied=True),
            "fused experts": Kind("mixtral", torch.bfloat16),
            "copies held apart": Kind("llama", tied=True),
        }
        folders = write_pair(folder, kinds.get(kind, Kind("llama")))
        if kind == "copies held apart":
            model = plain_apart(folders)
        else:
            model = plain(folders.ft)
        yield Loaded(kind, folders, model)


def transpose(patch: pytest.MonkeyPatch) -> None:
    """Some matrices are stored the other way round, as transformers does with some models'."""
    fresh = conversion_mapping._build_checkpoint_conversion_mapping()
    patch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", fresh)
    patch.setattr(conversion_mapping, "USER_REGISTERED_MAPPINGS", set())
    name = "mlp.down_proj.weight"
    turned = WeightConverter(name, name, [Transpose(0, 1)])
    conversion_mapping.register_checkpoint_conversion_mapping("llama", [turned])


def plain_apart(folders: Pair) -> Any:
    """A model that holds the stored copy of a tied tensor in memory of its own."""
    for folder in (folders.ft, folders.base):
        tensors = load_file(folder / "model.safetensors")
        tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "_tied_weights_keys", {})
        return plain(folders.ft)


@contextmanager
def restoring(live: Any) -> Iterator[Any]:
    """As every study restores."""
    try:
        yield live
    finally:
        live.restore()


def selections(live: LiveModel, strategy: Any, rate: str) -> dict[str, Selection]:
    setting, found = DropSetting(strategy, Fraction(rate), 0), {}
    for unit in live.pairing.units("tensor"):
        chosen = select_unit(unit, [setting], DeltaStream()).selections[setting]
        found |= {one.name: chosen for one in unit.pairs}
    return found


class Drawn:
    """A direction that is drawn anew for every tensor, and may stop."""

    def __init__(self, seed: int, told: Callable[[], None] = lambda: None) -> None:
        self.seed, self.told = seed, told

    def fill(self, slot: Slot, out: Tensor) -> None:
        self.told()
        key = name_key(self.seed, slot.name) & (1 << 62) - 1
        out.normal_(generator=torch.Generator().manual_seed(key))


@pytest.fixture
def many_threads() -> Iterator[Callable[[int], None]]:
    """Small models too are visited by so many threads."""
    before = torch.get_num_threads()
    with resized(threaded=0):
        yield torch.set_num_threads
    torch.set_num_threads(before)


ANYTHING = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.property
@ANYTHING
@given(
    count=st.integers(1, 4),
    calls=st.integers(1, 25),
    strategy=st.sampled_from(["salient", "random"]),
    before=st.booleans(),
)
def test_model_has_its_bits_back_after_an_error_amid_an_edit(
    loaded: Loaded,
    many_threads: Callable[[int], None],
    count: int,
    calls: int,
    strategy: str,
    before: bool,
) -> None:
    model = loaded.model
    many_threads(count)
    held = state_of(model)
    live = loaded.live()
    chosen = selections(live, strategy, "0.6")
    stop = after(min(calls, len(chosen)))

    def selection_of(name: str) -> Selection:
        stop()
        return chosen[name]

    def work() -> None:
        with restoring(live):
            if before:
                live.put_back_all()
            live.edit(selection_of)

    with pytest.raises(Stop):
        work()
    assert differing(state_of(model), held) == []
    assert torch.get_num_threads() == count


@pytest.mark.property
@ANYTHING
@given(
    count=st.integers(1, 4),
    calls=st.integers(1, 60),
    axes=st.integers(1, 2),
    keep=st.booleans(),
)
def test_model_has_its_bits_back_after_an_error_amid_a_move(
    loaded: Loaded,
    many_threads: Callable[[int], None],
    count: int,
    calls: int,
    axes: int,
    keep: bool,
) -> None:
    model = loaded.model
    many_threads(count)
    held = state_of(model)
    live = loaded.live()
    stop = after(calls)

    def work() -> None:
        with restoring(live):
            live.span([Drawn(axis, stop) for axis in range(axes)], keep=keep)
            live.move(0.5, 1.0)
            live.move(2.0, -1.0)
            raise Stop

    with pytest.raises(Stop):
        work()
    assert differing(state_of(model), held) == []
    assert torch.get_num_threads() == count


@pytest.mark.property
@ANYTHING
@given(
    count=st.integers(1, 3),
    keep=st.booleans(),
    way=st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.3, 2.5])] * 2), min_size=1, max_size=4),
)
def test_a_point_is_rounded_once_and_the_same_whichever_way_led_there(
    loaded: Loaded,
    many_threads: Callable[[int], None],
    count: int,
    keep: bool,
    way: list[tuple[float, float]],
) -> None:
    model = loaded.model
    many_threads(count)
    first, second = Drawn(1), Drawn(2)
    tied = torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    with restoring(loaded.live()) as live:
        origin = {slot.name: slot.view.clone() for slot in live.slots}
        live.span([first, second], keep=keep)
        for a, b in way:
            live.move(a, b)
        for slot in live.slots:
            one, two = torch.empty(slot.size), torch.empty(slot.size)
            first.fill(slot, one)
            second.fill(slot, two)
            row = origin[slot.name].float().reshape(-1)
            row = torch.add(row, one, alpha=a) if a else row
            wanted = torch.add(row, two, alpha=b).to(slot.view.dtype)
            assert torch.equal(wanted.view(slot.view.shape), slot.view), slot.name
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("strategy", ["salient", "random"])
def test_an_edit_writes_what_drop_writes_to_a_folder(
    loaded: Loaded,
    many_threads: Callable[[int], None],
    tmp_path: Path,
    strategy: str,
) -> None:
    model = loaded.model
    many_threads(2)
    held = state_of(model)
    deltalens.drop(
        loaded.folders.ft,
        loaded.folders.base,
        tmp_path / "out",
        strategy=strategy,
        rate="0.6",
        scope="tensor",
    )
    with restoring(loaded.live()) as live:
        live.edit(selections(live, strategy, "0.6").__getitem__)
        assert differing(state_of(model), state_of(plain(tmp_path / "out"))) == []
        live.put_back_all()
        assert differing(state_of(model), state_of(plain(loaded.folders.base))) == []
    assert differing(state_of(model), held) == []


def test_models_are_what_they_are_called(loaded: Loaded) -> None:
    kind, model = loaded.kind, loaded.model
    slots = loaded.live().slots
    assert any(slot.flat is None for slot in slots) == (kind == "transposed in the file")
    shared = any(slot.owner.numel() > slot.size for slot in slots)
    assert shared == (kind == "fused experts")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (kind == "half")
    if kind == "copies held apart":
        assert HEAD not in {slot.name for slot in slots}


def test_a_copy_held_apart_takes_part_in_a_landscape_as_if_it_were_tied(tmp_path: Path) -> None:
    folders = write_pair(tmp_path, Kind("llama", tied=True))
    apart, tied = plain_apart(folders), plain(folders.ft)
    checkpoint, data = open_checkpoint(folders.ft), torch.arange(24).view(2, 12)
    values, states = [], []
    for model in (apart, tied):
        slots = slots_of_checkpoint(model, checkpoint, {HEAD: "model.embed_tokens.weight"}, ())
        found, _ = top_of_hessian(
            model, slots, [lambda model: model(input_ids=data, labels=data).loss], 1, seed=0
        )
        values.append(found[0])
        with restoring(LiveTensors(slots, StoredWeights.of(checkpoint))) as live:
            live.span([Drawn(0)])
            live.move(0.25)
            states.append(state_of(model))
        assert differing(state_of(model), state_of(plain(folders.ft))) == []
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert differing(*states) == []


def test_what_a_plane_holds_goes_with_its_model(loaded: Loaded) -> None:
    live = loaded.live()
    live.span([Drawn(0)])
    held = weakref.ref(live)
    gc.disable()
    del live
    gone = held() is None
    gc.enable()
    assert gone, "held in a circle until the garbage collector comes by"


def test_a_zero_of_another_sign_in_a_copy_is_not_restored_into_what_counts(tmp_path: Path) -> None:
    folders = write_pair(tmp_path, Kind("llama", tied=True))
    file = folders.ft / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][0] = 0.0
    tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
    tensors[HEAD][0] = -0.0
    save_file(tensors, file, {"format": "pt"})
    loaded = Loaded("half", folders, plain(folders.ft))
    held = state_of(loaded.model)
    with restoring(loaded.live()) as live:
        assert HEAD in live.pairing.copies
        live.put_back_all()
    assert differing(state_of(loaded.model), held) == []
