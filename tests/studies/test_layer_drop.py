"""The sweep over layers without training: its cells, what is not computed again, and its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyRecord, load_study
from deltalens.reports.layers import summarize_layers
from deltalens.scoring import loading as module
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.prefix import Prefix, find_blocks
from deltalens.studies.engine import StudyWatch
from deltalens.studies.weights import StoredReader
from tests.support.checkpoint_pairs import (
    Kind,
    Pair,
    PairOf,
    States,
    differing,
    plain,
    save_pair,
    state_of,
)
from tests.support.models import POSITIONS, gpt2, initialized, llama, opt, qwen2
from tests.support.runs import (
    FEW,
    StopAfter,
    command,
    journal,
    on_each_cell,
    settings,
    succeeds,
    table,
    write_rows,
)
from tests.support.studies import sweep_layers_drop

BLOCKS = 5
ROWS = [
    {"prompt": f"{a} + {b} =", "completion": f" {a + b}{' and so on' * (a % 3)}"}
    for a in range(4)
    for b in range(5)
]
FAMILIES: dict[str, Callable[[bool], Any]] = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2}
FAMILIES["opt"] = opt


def deep(family: str) -> Any:
    """A model of this family with five blocks."""
    config = FAMILIES[family](False).config
    config.num_hidden_layers = BLOCKS
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * BLOCKS
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def deep_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Pairs of five blocks, each written once."""
    made: dict[tuple[str, torch.dtype], Pair] = {}

    def give(family: str = "llama", dtype: torch.dtype = torch.float32) -> Pair:
        if (family, dtype) not in made:
            model = initialized(lambda: deep(family), seed=1)
            made[family, dtype] = save_pair(tmp_path_factory.mktemp(family), model, dtype)
        return made[family, dtype]

    return give


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", ROWS)


def sweep(pair: Pair, out: Path, **spec: Any) -> StudyRecord:
    if not spec.get("data"):
        spec["fidelity"] = FEW
    return sweep_layers_drop(pair.ft, pair.base, out, **spec)


class Shown:
    """A metric that keeps the model and a copy of its weights."""

    def __init__(self) -> None:
        self.states: list[States] = []
        self.model: nn.Module | None = None

    def metric(self, model: nn.Module) -> dict[str, float]:
        """The measurement: how often one was taken."""
        self.model = model
        self.states.append(state_of(model))
        return {"measured": float(len(self.states))}


# ------------------------------------------------------------------------------------- the cells


def block_of_name(name: str) -> int | None:
    found = [part for part in name.split(".") if part.isdigit()]
    return int(found[0]) if found else None


def assembled(outside: States, inside: States, blocks: set[int]) -> States:
    """The one model with these blocks of the other."""
    return {
        name: inside[name] if block_of_name(name) in blocks else outside[name] for name in outside
    }


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "opt"))],
)
def test_cell_is_one_model_with_the_other_s_blocks(
    family: str, deep_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair, shown = deep_pair(family), Shown()
    sweep(pair, tmp_path / "s", groups=(2,), metric=shown.metric)
    ft, base = state_of(plain(pair.ft)), state_of(plain(pair.base))
    found = {(x["setting"]["method"], x["setting"]["group"]): x for x in journal(tmp_path / "s")}
    groups = {"0-1": {0, 1}, "2-3": {2, 3}, "4": {4}}
    wanted = {("ft", ""): ft, ("base", ""): base}
    wanted |= {("drop", name): assembled(ft, base, blocks) for name, blocks in groups.items()}
    wanted |= {("keep", name): assembled(base, ft, blocks) for name, blocks in groups.items()}
    assert found.keys() == wanted.keys()
    for cell, state in wanted.items():
        shown_then = shown.states[int(found[cell]["metrics"]["measured"][0]) - 1]
        assert differing(shown_then, state) == [], cell


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (1, ["0", "1", "2", "3", "4"]),
        (3, ["0-2", "3-4"]),
        (5, ["0-4"]),
    ],
)
def test_groups_are_consecutive_and_the_last_is_shorter(
    size: int, names: list[str], deep_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    record = sweep(deep_pair(), tmp_path / "s", groups=(size,), metric=Shown().metric)
    assert record.kind == "layer-sweep"
    assert list(record.cells.columns)[:4] == ["method", "size", "group", "seed"]
    for method in ("drop", "keep"):
        cells = record.cells[record.cells["method"] == method]
        assert list(cells["group"]) == names
        assert set(cells["size"]) == {size}
    ends = record.cells[record.cells["size"] == 0]
    assert list(ends["method"]) == ["ft", "base"]
    assert set(ends["group"]) == {""}


def test_same_blocks_under_two_sizes_are_computed_once(
    deep_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    shown = Shown()
    record = sweep(deep_pair(), tmp_path / "s", groups=(1, 2), metric=shown.metric)
    assert len(record.cells) == 2 + 2 * 5 + 2 * 3
    assert len(shown.states) == len(record.cells) - 2


def test_what_does_not_take_part_is_the_fine_tune_s_in_every_cell(
    deep_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair, shown = deep_pair(), Shown()
    record = sweep(
        pair, tmp_path / "s", include=r"layers\.[23]\..*mlp", metric=shown.metric, groups=(1,)
    )
    assert set(record.cells["group"]) == {"", "2", "3"}
    ft = state_of(plain(pair.ft))
    for state in shown.states:
        assert all("mlp" in name for name in differing(state, ft))


# ---------------------------------------------------------------------- what is not computed again


def counted_blocks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every forward of a block of a Llama from now on."""
    ran: list[nn.Module] = []
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    forward = layer.forward

    def counting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        ran.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", counting)
    return ran


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.slow) for name in FAMILIES),
    ],
    ids=str,
)
def test_cached_prefix_gives_the_table_of_evaluating_in_full(
    family: str, dtype: torch.dtype, deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    pair = deep_pair(family, dtype)
    spec: dict[str, Any] = {
        "data": [rows],
        "groups": (1, 2) if (family, dtype) == ("llama", torch.float32) else (2,),
        "batch_tokens": 128,
        "metrics": ("loss", "exact_match", "kl"),
        "fidelity": FEW,
    }
    cached = sweep_layers_drop(pair.ft, pair.base, tmp_path / "cached", **spec)
    full = sweep_layers_drop(pair.ft, pair.base, tmp_path / "full", cache_gb=0, **spec)
    assert cached.facts["notes"] == full.facts["notes"] == []
    assert cached.facts["most_cached_bytes"] > 0
    assert table(tmp_path / "cached") == table(tmp_path / "full")
    losses = full.cells[full.cells["metric"] == "loss"]["value"]
    assert len(set(losses)) == len(losses) - 2 * (1 in spec["groups"])


def test_states_of_one_model_are_not_taken_for_the_other_s(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {
        "data": [rows],
        "groups": (1, 2),
        "batch_tokens": 128,
        "exclude": r"layers\.[0134]\.",
    }
    record = sweep(deep_pair(), tmp_path / "cached", **spec)
    sweep(deep_pair(), tmp_path / "full", cache_gb=0, **spec)
    assert set(record.cells["group"]) == {"", "2", "2-3"}
    assert table(tmp_path / "cached") == table(tmp_path / "full")


def test_unchanged_blocks_are_passed_over(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, counts = deep_pair(), {}
    for name, cache_gb in (("cached", 4.0), ("full", 0.0)):
        with monkeypatch.context() as patch:
            ran = counted_blocks(patch)
            sweep(pair, tmp_path / name, data=[rows], cache_gb=cache_gb, batch_tokens=64)
            counts[name] = len(ran)
    # The look for NaN before the first cell.
    looked = BLOCKS
    batches = (counts["full"] - looked) / (BLOCKS * (2 + 2 * BLOCKS))
    assert batches == int(batches) > 1
    # Each cell from its group on, and each model once ...
    least = 2 * (BLOCKS + sum(range(1, BLOCKS + 1)))
    # ... and a trial: a short text in full, on to the last place beside another, then replayed.
    trial = BLOCKS + 2 * (BLOCKS - 1) + sum(range(1, BLOCKS))
    assert counts["cached"] == looked + least * batches + trial


def test_held_states_stay_within_the_limit_and_the_rest_runs_in_full(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    pair = deep_pair()
    spec: dict[str, Any] = {"data": [rows], "batch_tokens": 64}
    whole = sweep(pair, tmp_path / "whole", **spec).facts["most_cached_bytes"]
    hidden = plain(pair.ft).config.hidden_size
    assert whole <= 4 * hidden * POSITIONS * len(ROWS)
    limit = whole * 2 // 3
    less = sweep(pair, tmp_path / "less", cache_gb=limit / 1e9, **spec)
    assert 0 < less.facts["most_cached_bytes"] <= limit
    assert "recomputed in full" in less.facts["notes"][0]
    assert table(tmp_path / "less") == table(tmp_path / "whole")


def _accumulating(index: int, out: torch.Tensor, kept: list[Any]) -> torch.Tensor:
    """Every block adds to what is handed on."""
    kept[0] = out.mean() if index == 0 else kept[0] + 1e-3 * index
    return out + kept[0]


def _stashing(index: int, out: torch.Tensor, kept: list[Any]) -> torch.Tensor:
    """A later block uses what an early one has kept, as shared keys and values are."""
    if index == 1:
        kept[0] = out.mean()
    return out + kept[0] if index == 3 else out


def _stashing_at_the_end(index: int, out: torch.Tensor, kept: list[Any]) -> torch.Tensor:
    """The last block uses what the one before has kept: no states that are held go through it."""
    if index == BLOCKS - 2:
        kept[0] = out.mean()
    return out + kept[0] if index == BLOCKS - 1 else out


@pytest.mark.parametrize("handing_on", [_accumulating, _stashing, _stashing_at_the_end])
def test_model_whose_replay_differs_is_evaluated_in_full_with_a_note(
    handing_on: Callable[..., torch.Tensor],
    deep_pair: Callable[..., Pair],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    forward, kept = layer.forward, [0.0]

    def leaking(self: nn.Module, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return handing_on(self.self_attn.layer_idx, forward(self, hidden, **kwargs), kept)

    monkeypatch.setattr(layer, "forward", leaking)
    cached = sweep(deep_pair(), tmp_path / "cached", data=[rows], batch_tokens=128)
    sweep(deep_pair(), tmp_path / "full", data=[rows], batch_tokens=128, cache_gb=0)
    assert "different logits" in cached.facts["notes"][0]
    assert table(tmp_path / "cached") == table(tmp_path / "full")


def test_blocks_that_write_into_what_they_are_given_are_passed_over(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    forward = layer.forward

    def writing(self: nn.Module, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = forward(self, hidden.mul_(1.25), **kwargs)
        return out

    monkeypatch.setattr(layer, "forward", writing)
    cached = sweep(deep_pair(), tmp_path / "cached", data=[rows], batch_tokens=128)
    full = sweep(deep_pair(), tmp_path / "full", data=[rows], batch_tokens=128, cache_gb=0)
    assert cached.facts["notes"] == full.facts["notes"] == []
    assert table(tmp_path / "cached") == table(tmp_path / "full")


def test_encoder_is_swept_with_its_prefix_cached(pair_of: PairOf, tmp_path: Path) -> None:
    pair = pair_of(family="bert", tied=True)
    cached = sweep(pair, tmp_path / "cached")
    sweep(pair, tmp_path / "full", cache_gb=0)
    assert cached.facts["most_cached_bytes"] > 0
    assert table(tmp_path / "cached") == table(tmp_path / "full")


def test_blocks_that_share_weights_are_not_passed_over() -> None:
    model = initialized(lambda: deep("llama"), seed=1)
    blocks = model.model.layers
    assert find_blocks(model, ["model.layers"]) is blocks
    blocks[3].mlp.up_proj.weight = blocks[1].mlp.up_proj.weight
    with pytest.raises(DeltaLensError, match="share weights"):
        find_blocks(model, ["model.layers"])


def test_several_lists_of_blocks_are_not_passed_over() -> None:
    model = initialized(lambda: deep("llama"), seed=1)
    with pytest.raises(DeltaLensError, match=r"several lists.*encoder\.block"):
        find_blocks(model, {"encoder.block", "decoder.block"})
    with pytest.raises(DeltaLensError, match=r"0 lists of blocks called 'model\.stages'"):
        find_blocks(model, {"model.stages"})


def test_blocks_are_in_place_again_after_a_forward_that_raises() -> None:
    model = initialized(lambda: deep("llama"), seed=1)
    own = list(model.model.layers)
    prefix = Prefix(model, model.model.layers, [3], 1 << 30)
    inputs = {"input_ids": torch.ones(2, 7, dtype=torch.int64), "use_cache": False}
    with prefix.evaluating(0, print), torch.inference_mode():
        wanted = model(**inputs).logits
    prefix.advance(3)
    with prefix.evaluating(3, print), torch.inference_mode():
        assert torch.equal(model(**inputs).logits, wanted)
    assert prefix.refused is None

    def stop(*given: Any) -> None:
        assert model.model.layers[0] is not own[0], "nothing stands in for a block"
        assert model.model.layers[0].self_attn is own[0].self_attn
        raise KeyboardInterrupt

    hook = own[4].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), prefix.evaluating(3, print), torch.inference_mode():
        model(**inputs)
    hook.remove()
    assert all(a is b for a, b in zip(model.model.layers, own, strict=True))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_answers_that_are_generated_are_evaluated_in_full(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {"data": [rows], "limit": 4, "groups": (5,), "answer_pattern": r"\d+"}
    record = sweep(deep_pair(), tmp_path / "s", **spec)
    assert record.facts["notes"] == [
        "unchanged blocks were recomputed in every cell: the model generates"
    ]


# ------------------------------------------------------------------------------- resume and restore


@pytest.mark.parametrize(
    "cells", [4, 7, *(pytest.param(cells, marks=pytest.mark.slow) for cells in (1, 6, 11, 12))]
)
def test_interrupted_and_resumed_equals_uninterrupted(
    cells: int, deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    pair, spec = deep_pair(), {"data": [rows], "groups": (1,), "batch_tokens": 128}
    sweep(pair, tmp_path / "whole", **spec)
    stop = on_each_cell(StopAfter(cells, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        sweep(pair, tmp_path / "parts", watch=stop, **spec)
    assert len(journal(tmp_path / "parts")) == cells
    sweep(pair, tmp_path / "parts", **spec)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert settings(tmp_path / "parts") == settings(tmp_path / "whole")


def test_finished_study_is_not_computed_again(
    deep_pair: Callable[..., Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(deep_pair(), tmp_path / "s", groups=(5,))
    before = table(tmp_path / "s")
    monkeypatch.setattr(module, "load_model", None)
    sweep(deep_pair(), tmp_path / "s", groups=(5,))
    assert table(tmp_path / "s") == before
    differs = r"another study[\s\S]*include: None in the folder, 'mlp' now"
    with pytest.raises(DeltaLensError, match=differs):
        sweep(deep_pair(), tmp_path / "s", groups=(5,), include="mlp")


@pytest.mark.parametrize("calls", [1, 8, 16])
def test_model_has_its_bits_back_after_an_exception(
    calls: int, deep_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair, shown, stop = deep_pair(), Shown(), StopAfter(calls, RuntimeError("no more"))

    def metric(model: nn.Module) -> dict[str, float]:
        found = shown.metric(model)
        stop()
        return found

    # The first cell is the fine-tune; any other that fails does not end the study.
    with pytest.raises(RuntimeError, match="no more") if calls == 1 else nullcontext():
        study = sweep(pair, tmp_path / "s", groups=(1, 2), metric=metric)
        assert [failure.reason for failure in study.failures] == ["RuntimeError: no more"]
    assert shown.model is not None
    assert differing(state_of(shown.model), state_of(plain(pair.ft))) == []


@pytest.mark.parametrize("cells", [2, 5])
def test_cells_after_one_that_failed_amid_an_edit_are_not_affected(
    cells: int,
    deep_pair: Callable[..., Pair],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, stop, read = deep_pair(), StopAfter(4, MemoryError("no room")), StoredReader.read
    done: list[None] = []

    def stopping(self: StoredReader, *given: Any) -> None:
        if len(done) >= cells:
            stop()
        read(self, *given)

    sweep(pair, tmp_path / "whole", groups=(1,), data=[rows])
    with monkeypatch.context() as patch:
        patch.setattr(StoredReader, "read", stopping)
        told = on_each_cell(lambda: done.append(None))
        study = sweep(pair, tmp_path / "s", groups=(1,), data=[rows], watch=told)
    (failure,) = study.failures
    assert failure.reason == "MemoryError: no room"
    sweep(pair, tmp_path / "s", groups=(1,), data=[rows])
    assert table(tmp_path / "s") == table(tmp_path / "whole")


def test_model_and_its_blocks_are_back_after_an_exception_amid_a_replay(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, models = deep_pair(), []
    measure, stop = Scoring.measure, StopAfter(4, KeyboardInterrupt())

    def stopping(self: Scoring, model: Any) -> Any:
        models.append(model)
        hook = model.model.norm.register_forward_hook(lambda *given: stop())
        try:
            return measure(self, model)
        finally:
            hook.remove()

    monkeypatch.setattr(Scoring, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(pair, tmp_path / "s", data=[rows], batch_tokens=1 << 12)
    assert len(journal(tmp_path / "s")) > 0
    assert differing(state_of(models[0]), state_of(plain(pair.ft))) == []


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"groups": (0,)}, r"groups of 0: must be from 1 to 5"),
        ({"groups": (-3,)}, r"groups of -3: must be from 1 to 5"),
        ({"groups": (1, 6)}, r"groups of 6: must be from 1 to 5, the number of blocks in .*ft"),
        ({"groups": ()}, r"no group size: set the number"),
        ({"include": "embed_tokens"}, r"no block takes part[\s\S]*embed_tokens"),
        ({"cache_gb": -1.0}, r"cache_gb -1\.0: must be 0 or more"),
        ({"cache_gb": math.nan}, r"cache_gb nan"),
        ({"limit": 0}, r"limit=0"),
        ({"batch_tokens": 0}, r"batch_tokens=0"),
        ({"metrics": ("bleu",)}, r"metric 'bleu' cannot be measured here"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    spec: dict[str, Any],
    message: str,
    deep_pair: Callable[..., Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises(DeltaLensError, match=message):
        sweep(deep_pair(), tmp_path / "s", **spec)
    assert not (tmp_path / "s").exists()


def test_checkpoints_that_do_not_fit_are_refused(
    deep_pair: Callable[..., Pair], pair_of: PairOf, tmp_path: Path
) -> None:
    other = pair_of(Kind("llama"))
    with pytest.raises(DeltaLensError, match=r"does not match[\s\S]*layers\.[234]"):
        sweep_layers_drop(deep_pair().ft, other.base, tmp_path / "s")
    with pytest.raises(DeltaLensError, match="was passed as both the fine-tune and the base"):
        sweep_layers_drop(other.ft, other.ft, tmp_path / "s")


def test_model_without_blocks_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, value in (("ft", 1.0), ("base", 0.0)):
        (tmp_path / name).mkdir()
        save_file({"weight": torch.full((4,), value)}, tmp_path / name / "model.safetensors")
    with pytest.raises(DeltaLensError, match=r"no blocks[\s\S]*`include`[\s\S]*weight"):
        sweep_layers_drop(tmp_path / "ft", tmp_path / "base", tmp_path / "s")


# ------------------------------------------------------------------------------ summary and command


def test_summary_ranks_the_groups(deep_pair: Callable[..., Pair], tmp_path: Path) -> None:
    record = sweep(deep_pair(), tmp_path / "s", groups=(1, 2))
    found = summarize_layers(record)
    (leading,) = found.leading
    assert leading.metric == "top1_agreement"
    assert leading.ft == 1.0
    values = {
        (cell["setting"]["method"], cell["setting"]["group"]): cell["metrics"]["top1_agreement"][0]
        for cell in journal(tmp_path / "s")
    }
    lost = leading.by_loss(1)
    assert [one.group for one in lost] == sorted(
        map(str, range(BLOCKS)), key=lambda group: values["drop", group]
    )
    assert all(one.lost == pytest.approx(1 - values["drop", one.group]) for one in lost)
    recovered = leading.by_recovery(2)
    best = max(("0-1", "2-3", "4"), key=lambda group: values["keep", group])
    assert recovered[0].group == best
    text = "\n".join(found.sentences())
    assert f"dropping block {lost[0].group} costs most (" in text
    named = f"blocks {best} recover most" if "-" in best else f"block {best} recovers most"
    alike = len({one.recovered for one in recovered}) == 1
    assert f"groups of 2: kept alone, {'each recovers the same' if alike else named} (" in text
    assert "tensors outside the blocks" in text
    kl = next(metric for metric in found.metrics if metric.metric == "kl")
    assert kl.gained > 0, "a lower divergence is better"
    assert [len(made.rows) for made in found.tables()] == [BLOCKS, 3]
    shares = sum(one.delta for one in leading.groups if one.size == 1)
    assert shares + found.as_json()["outside_blocks"] == pytest.approx(1)


def test_command_as_typed(deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path) -> None:
    pair, out = deep_pair(), tmp_path / "study"
    typed = ("sweep", "layers-drop", pair.ft, pair.base, "--group-sizes", "2,5")
    typed += ("--data", rows, "--limit", 6, "-o", out)
    found = json.loads(succeeds(*typed, "--json"))
    assert found["leading"] == ["loss"], "no answer is right, before or after"
    groups = [one["group"] for one in found["metrics"]["loss"]["groups"]]
    assert groups == ["0-1", "2-3", "4", "0-4"]
    assert set(found["metrics"]["loss"]["most_lost"]["2"]) == {"0-1", "2-3", "4"}
    assert load_study(out).spec["groups"] == [2, 5]
    before = table(out)
    assert succeeds(*typed, "--quiet") == ""
    assert table(out) == before
    refused = command(*typed[:4], "--group-sizes", 9, "-o", tmp_path / "other")
    assert refused.exit_code == 2
    assert "groups of 9: must be from 1 to 5" in refused.output


def test_command_prints_the_tables_and_the_answer(
    deep_pair: Callable[..., Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deltalens.figures.draw", lambda folder: [folder / "picture.png"])
    typed = ("sweep", "layers-drop", deep_pair().ft, deep_pair().base, "-o", tmp_path / "s")
    text = succeeds(*typed, "--fidelity-tokens", 4, "--group-sizes", 5)
    assert "top1_agreement, groups of 5" in text
    assert "groups of 5: dropping blocks 0-4 costs most (" in text
    assert "tensors outside the blocks" in text
    assert "picture.png" in text


def test_progress_is_told_within_a_cell(
    deep_pair: Callable[..., Pair], rows: Path, tmp_path: Path
) -> None:
    told: list[float] = []
    sweep(
        deep_pair(),
        tmp_path / "s",
        data=[rows],
        batch_tokens=64,
        watch=StudyWatch(within=told.append),
    )
    assert any(0 < part < 1 for part in told)
