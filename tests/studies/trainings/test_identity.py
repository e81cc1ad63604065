"""Studies of trainings know themselves by their cells, and grow along their axes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deltalens
from deltalens import load_study, train
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.records import StudyRecord
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, sweep_data_ratio, sweep_layers
from deltalens.studies.training_plans import TrainingData
from deltalens.training.methods import method_of
from tests.support.fake_training import OPTIONS, FakeTraining, fake_trainings
from tests.support.runs import command
from tests.support.specs import run_study
from tests.support.training_folders import write_model, write_rows

FUNCTIONS: dict[str, Callable[..., StudyRecord]] = {
    "compare": compare,
    "mask-ratio": sweep_mask_ratio,
    "layers": sweep_layers,
    "data-ratio": sweep_data_ratio,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("source")
    rows = write_rows(folder / "rows.jsonl")
    return TrainingData(model=write_model(folder / "ft"), data=rows, eval_data=[rows])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    return fake_trainings(monkeypatch)


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "cells.csv").read_bytes(), (folder / "study.json").read_bytes()


def test_each_method_is_recorded_with_the_ratio_that_it_is_trained_at(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    record = run_study(compare, ["l1-mask", "mft", "lora-on-ft"], source, out, seeds=1)
    assert record.setting("mask_ratio", "mft") == record.setting("mask_ratio", "l1-mask") == "0.1"
    assert record.setting("lora_rank", "lora-on-ft") == 64
    assert record.setting("mask_ratio", "lora-on-ft") is None
    sweep = run_study(sweep_data_ratio, "gmt", source, tmp_path / "gmt", seeds=1)
    assert sweep.setting("mask_ratio", "gmt") == "0.2"
    before = files(out), fake.calls
    differs = r"settings\.mft\.mask_ratio: '0\.1' in the folder, '0\.2' now"
    with pytest.raises(RecordError, match=differs):
        run_study(compare, "mft", source, out, {"mask_ratio": "0.2"}, seeds=1)
    run_study(compare, "mft", source, out, {"mask_ratio": "0.10"}, seeds=1)
    assert (files(out), fake.calls) == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_and_dtype_are_recorded_as_they_came_out(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, name: str
) -> None:
    sizes: dict[str, Any] = {"group_sizes": [1]} if name == "layers" else {}
    record = run_study(FUNCTIONS[name], "mft", source, tmp_path / "s", seeds=1, **sizes)
    assert (record.spec["device"], record.spec["dtype"]) in [
        ("cpu", "float32"),
        ("cuda", "float32"),
    ]


STEPS: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    (
        "compare",
        [{"methods": ["mft"], "seeds": 1}, {"methods": ["lora-on-ft", "sft"], "seeds": 2}],
        {"methods": ["sft", "mft", "lora-on-ft"], "seeds": 2},
    ),
    (
        "mask-ratio",
        [
            {"methods": ["gmt"], "mask_ratios": "0.9", "seeds": 2},
            {"methods": ["hft", "random-mask"], "mask_ratios": "0.25,0.5", "seeds": 1},
        ],
        {"methods": ["random-mask", "hft", "gmt"], "mask_ratios": "0.5,0.25,0.9", "seeds": 2},
    ),
    (
        "layers",
        [
            {"methods": ["l1-mask"], "group_sizes": [2], "seeds": 2},
            {"methods": ["mft"], "group_sizes": [1]},
        ],
        {"methods": ["mft", "l1-mask"], "group_sizes": [1, 2], "seeds": 3},
    ),
    (
        "data-ratio",
        [
            {"methods": ["gmt"], "data_ratios": "1", "seeds": 1},
            {"methods": ["sft"], "data_ratios": "0.1"},
        ],
        {"methods": ["sft", "gmt"], "data_ratios": "0.1,1", "seeds": 3},
    ),
]


@pytest.mark.parametrize(("name", "parts", "union"), STEPS, ids=[one[0] for one in STEPS])
@pytest.mark.parametrize("turned", [False, True])
def test_a_study_that_grew_equals_one_call_for_all_of_it(
    source: TrainingData,
    fake: FakeTraining,
    tmp_path: Path,
    name: str,
    parts: list[dict[str, Any]],
    union: dict[str, Any],
    turned: bool,
) -> None:

    def ask(out: Path, part: dict[str, Any]) -> StudyRecord:
        return run_study(FUNCTIONS[name], source=source, out=out, settings={"steps": 2}, **part)

    whole = ask(tmp_path / "whole", union)
    calls = fake.calls
    for part in reversed(parts) if turned else parts:
        ask(tmp_path / "s", part)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls, "no cell is made twice"
    for part in parts:
        again = ask(tmp_path / "s", part)
        assert len(again.cells) == len(whole.cells)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls


def test_what_a_study_held_is_gone_on_with_as_it_was_asked_then(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    """More seeds are asked for with another method: the first one's have its own settings."""
    masks, adapters = {"mask_ratio": "0.3", "blocks": "1"}, {"lora_rank": 2}
    run_study(compare, "mft", source, tmp_path / "s", masks, seeds=1)
    run_study(compare, "lora-on-ft", source, tmp_path / "s", adapters, seeds=2)
    both = {**masks, **adapters}
    run_study(compare, ["mft", "lora-on-ft"], source, tmp_path / "whole", both, seeds=2)
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_the_base_is_named_again_only_if_it_is_not_measured_yet(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_model(tmp_path / "base")
    out = tmp_path / "s"
    run_study(compare, ["base", "l1-mask"], source, out, base=base)
    run_study(compare, "mft", source, out)
    run_study(compare, ["base", "mft", "l1-mask"], source, tmp_path / "whole", base=base)
    assert files(out) == files(tmp_path / "whole")
    (out / "cells.jsonl").write_text("")
    with pytest.raises(DeltaLensError, match="cells that start from the base are not finished"):
        run_study(compare, "mft", source, out)


OF_SOURCE: dict[str, list[Any]] = {
    "limit": [10],
    "fields": [{"prompt": "completion"}],
    "eval_every": [1],
    "dtype": ["float32", "bfloat16"],
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A study, and what it is asked for: axes, settings, and of its data."""
    name = draw(st.sampled_from(["compare", "data-ratio"]))
    more = ["lora-on-ft", "l1-mask"] if name == "compare" else ["lora", "gmt", "random-mask"]
    known = ["mft", "sft", *more]
    methods = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
    axes: dict[str, Any] = {"methods": methods, "seeds": draw(st.integers(1, 2))}
    if name == "data-ratio":
        axes["data_ratios"] = draw(st.sampled_from(["0.1", "0.5", "0.1,0.5"]))
    few = st.lists(st.sampled_from([*OPTIONS]), max_size=2, unique=True)
    spec = {one: draw(st.sampled_from(OPTIONS[one])) for one in draw(few)}
    few = st.lists(st.sampled_from([*OF_SOURCE]), max_size=1, unique=True)
    of_source = {one: draw(st.sampled_from(OF_SOURCE[one])) for one in draw(few)}
    return name, axes, spec, of_source


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(one=calls(), other=calls(), like=st.sampled_from(["axes", "setting", "no"]))
def test_whatever_two_calls_differ_in_they_share_a_folder_only_if_no_number_differs(
    source: TrainingData, one: Any, other: Any, like: str
) -> None:
    if like == "axes" and one[0] == other[0]:
        other = (*other[:2], *one[2:])
    elif like == "setting":
        other = (*one[:2], one[2] | dict(list(other[2].items())[:1]), one[3])

    def ask(call: Any, out: Path, **more: Any) -> StudyRecord:
        name, axes, spec, of_source = call
        own = {n: getattr(source, n) for n in ("model", "data", "eval_data")}
        data = TrainingData(**own, **of_source)
        return run_study(FUNCTIONS[name], source=data, out=out, settings=spec, **{**axes, **more})

    folder = Path(tempfile.mkdtemp())
    try:
        with pytest.MonkeyPatch.context() as patch:
            fake_trainings(patch)
            alone = {}
            for name, call in (("one", one), ("other", other)):
                try:
                    alone[name] = numbers(ask(call, folder / name))
                except DeltaLensError:
                    return  # Not a call at all.
            try:
                both = numbers(ask(other, folder / "one"))
            except RecordError:
                return
            for found in alone.values():
                assert {setting: both[setting] for setting in found} == found
    finally:
        shutil.rmtree(folder)


def numbers(record: StudyRecord) -> dict[tuple[Any, ...], float]:
    cells = record.cells
    own = cells[cells["metric"] == "loss"].drop(columns=["metric", "stderr", "n"])
    return {tuple(row[:-1]): row[-1] for row in own.itertuples(index=False)}


FOREIGN = [
    ("gmt", "blocks", "1", "mask_ratio, scope, apply_to, include, exclude"),
    ("sft", "mask_ratio", "0.5", "none of its own"),
    ("hft", "mask_ratio", "0.5", "include, exclude"),
    ("random-mask", "scope", "tensor", "mask_ratio, apply_to"),
    ("lora", "blocks", "1", "lora_rank, lora_alpha, lora_dropout, targets"),
    ("mft", "lora_rank", 64, "mask_ratio, blocks"),
    ("mft", "exclude", "mlp", "mask_ratio, blocks"),
    ("l1-mask", "threshold", -0.03, "mask_ratio, blocks, modules, include"),
]


@pytest.mark.parametrize(("method", "option", "value", "own"), FOREIGN)
def test_a_setting_of_another_method_is_refused_with_the_methods_own(
    source: TrainingData, tmp_path: Path, method: str, option: str, value: Any, own: str
) -> None:
    message = rf"{method}: has no setting {option}; it has {own}"
    with pytest.raises(DeltaLensError, match=message):
        method_of(method, **{option: value})
    out = tmp_path / "out"
    with pytest.raises(DeltaLensError, match=message):
        train(method, source.model, source.data, out, settings={option: value})
    flag = f"--{option.replace('_', '-')}"
    result = command(
        "train", method, source.model, "--train-data", source.data, "-o", out, flag, value
    )
    assert result.exit_code == 2, result.output
    assert f"No such option: {flag}" in " ".join(result.output.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compare", "lora,sft", "--setting", "blocks=1"],
            "setting blocks: no method here has it (lora has lora_rank, lora_alpha, lora_dropout, "
            "targets; sft has none)",
        ),
        (["compare", "mft:scope=layer"], "mft: has no setting scope; it has mask_ratio, blocks"),
        (["compare", "mft", "--scope", "layer"], "No such option: --scope"),
        (["sweep", "mask-ratio", "gmt:mask-ratio=0.3"], "give --mask-ratios instead"),
        (
            ["sweep", "mask-ratio", "mft", "--setting", "threshold=-0.1"],
            "mft: threshold is varied by this study; give --mask-ratios instead",
        ),
        (["sweep", "layers", "mft", "--setting", "blocks=1"], "give --group-sizes instead"),
        (["sweep", "layers", "mft:include=mlp"], "give --group-sizes instead"),
        (["sweep", "data-ratio", "sft:apply-to=update"], "sft: has no setting apply_to"),
        (
            ["efficiency", "hft", "--setting", "mask-ratio=0.3"],
            "hft: has no setting mask_ratio; it has include, exclude",
        ),
        (
            ["compare", "mft,l1-mask", "--setting", "threshold=-0.1"],
            "threshold: l1-mask cannot use it",
        ),
    ],
)
def test_so_do_the_commands_that_train_over_and_over(
    source: TrainingData, tmp_path: Path, arguments: list[str], message: str
) -> None:
    behind = next((n for n, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    words = [*arguments[:behind], source.model, *arguments[behind:], "--train-data", source.data]
    measured = [] if arguments[0] == "efficiency" else ["--eval-data", source.data]
    result = command(*words, *measured, "-o", tmp_path / "s")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()


def test_settings_that_a_study_goes_through_are_refused_in_python_too(
    source: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    with pytest.raises(DeltaLensError, match=r"mask_ratio .*give mask_ratios instead"):
        run_study(sweep_mask_ratio, "gmt", source, out, {"mask_ratio": "0.3"})
    with pytest.raises(DeltaLensError, match=r"blocks .*give group_sizes instead"):
        run_study(sweep_layers, "mft", source, out, {"blocks": "1"})
    with pytest.raises(DeltaLensError, match="seed 3: the trainings of a study are numbered"):
        run_study(compare, "mft", source, out, {"seed": 3})
    assert not out.exists()


@pytest.mark.parametrize(
    ("sweep", "varied", "own"),
    [
        (deltalens.sweep_mask_ratio, {"mask_ratios": 0.3}, {"mask_ratio": None, "blocks": "4-7"}),
        (deltalens.sweep_layers, {"group_sizes": 2}, {"mask_ratio": "0.1", "blocks": None}),
        (deltalens.sweep_data_ratio, {"data_ratios": 1}, {"mask_ratio": "0.1", "blocks": "4-7"}),
    ],
)
def test_a_papers_recipe_leaves_to_a_sweep_what_it_varies(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, sweep: Any, varied: Any, own: Any
) -> None:
    rows = {"train_data": source.data, "eval_data": source.eval_data}
    how: dict[str, Any] = {"recipe": "mft-paper:llama2-7b:maths", "seeds": 1, **varied}
    study = sweep("mft", source.model, out=tmp_path / "s", **rows, **how)
    assert {name: study.setting(name, "mft") for name in own} == own
    assert (study.spec["epochs"], study.spec["accumulate"]) == (2.0, 16)


def test_a_study_says_which_seeds_it_has(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    run_study(compare, "mft", source, tmp_path / "s", seeds=2)
    run_study(compare, "mft", source, tmp_path / "s", seeds=1)
    assert load_study(tmp_path / "s").spec["seeds"] == 2


@pytest.mark.slow
def test_real_trainings_grow_to_the_last_bit(source: TrainingData, tmp_path: Path) -> None:
    """One-off drops, too, whose plain fine-tune is gone by then and is trained again."""
    shared = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}
    parts: list[dict[str, Any]] = [
        {"methods": ["one-off-drop"], "mask_ratios": "0.5", "seeds": 1},
        {"methods": ["gmt"], "mask_ratios": "0.9", "seeds": 2},
    ]
    whole = {"methods": ["gmt", "one-off-drop"], "mask_ratios": "0.5,0.9", "seeds": 2}
    for out, axes in [*((tmp_path / "s", part) for part in parts), (tmp_path / "whole", whole)]:
        run_study(sweep_mask_ratio, source=source, out=out, settings=shared, **axes)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
