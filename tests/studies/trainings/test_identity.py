"""Studies of trainings know themselves by their cells, and grow along their axes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalens import load_study
from deltalens.catalog.methods import options_of
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.records import StudyRecord
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, sweep_data_ratio, sweep_layers
from deltalens.studies.training_plans import TrainingData
from deltalens.training.spec import TrainingSpec
from tests.support.fake_training import OPTIONS, FakeTraining, fake_trainings
from tests.support.runs import command
from tests.support.training_folders import write_model, write_rows

FUNCTIONS = {
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
    record = compare(["l1-mask", "mft", "lora-on-ft"], source, out, TrainingSpec(), seeds=1)
    assert record.setting("mask_ratio", "mft") == record.setting("mask_ratio", "l1-mask") == "0.1"
    assert record.setting("lora_rank", "lora-on-ft") == 64
    assert record.setting("mask_ratio", "lora-on-ft") is None
    sweep = sweep_data_ratio(["gmt"], source, tmp_path / "gmt", TrainingSpec(), seeds=1)
    assert sweep.setting("mask_ratio", "gmt") == "0.2"
    before = files(out), fake.calls
    with pytest.raises(RecordError, match=r"settings\.mft\.mask_ratio: '0\.1' there, '0\.2' now"):
        compare(["mft"], source, out, TrainingSpec(mask_ratio="0.2"), seeds=1)
    compare(["mft"], source, out, TrainingSpec(mask_ratio="0.10"), seeds=1)
    assert (files(out), fake.calls) == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_and_dtype_are_recorded_as_they_came_out(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, name: str
) -> None:
    sizes = {"sizes": [1]} if name == "layers" else {}
    record = FUNCTIONS[name](["mft"], source, tmp_path / "s", TrainingSpec(), seeds=1, **sizes)
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
            {"methods": ["gmt"], "ratios": "0.9", "seeds": 2},
            {"methods": ["hft", "random-mask"], "ratios": "0.25,0.5", "seeds": 1},
        ],
        {"methods": ["random-mask", "hft", "gmt"], "ratios": "0.5,0.25,0.9", "seeds": 2},
    ),
    (
        "layers",
        [{"methods": ["l1-mask"], "sizes": [2], "seeds": 2}, {"methods": ["mft"], "sizes": [1]}],
        {"methods": ["mft", "l1-mask"], "sizes": [1, 2], "seeds": 3},
    ),
    (
        "data-ratio",
        [{"methods": ["gmt"], "ratios": "1", "seeds": 1}, {"methods": ["sft"], "ratios": "0.1"}],
        {"methods": ["sft", "gmt"], "ratios": "0.1,1", "seeds": 3},
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
    ask, spec = FUNCTIONS[name], TrainingSpec(steps=2)
    whole = ask(source=source, out=tmp_path / "whole", spec=spec, **union)
    calls = fake.calls
    for part in reversed(parts) if turned else parts:
        ask(source=source, out=tmp_path / "s", spec=spec, **part)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls, "no cell is made twice"
    for part in parts:
        again = ask(source=source, out=tmp_path / "s", spec=spec, **part)
        assert len(again.cells) == len(whole.cells)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls


def test_what_a_study_held_is_gone_on_with_as_it_was_asked_then(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    """More seeds are asked for with another method: the first one's have its own settings."""
    compare(["mft"], source, tmp_path / "s", TrainingSpec(mask_ratio="0.3", blocks="1"), seeds=1)
    compare(["lora-on-ft"], source, tmp_path / "s", TrainingSpec(lora_rank=2), seeds=2)
    both = TrainingSpec(mask_ratio="0.3", blocks="1", lora_rank=2)
    compare(["mft", "lora-on-ft"], source, tmp_path / "whole", both, seeds=2)
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_the_base_is_named_again_only_if_it_is_not_measured_yet(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_model(tmp_path / "base")
    out, spec = tmp_path / "s", TrainingSpec()
    compare(["base", "l1-mask"], source, out, spec, base=base)
    compare(["mft"], source, out, spec)
    compare(["base", "mft", "l1-mask"], source, tmp_path / "whole", spec, base=base)
    assert files(out) == files(tmp_path / "whole")
    (out / "cells.jsonl").write_text("")
    with pytest.raises(DeltaLensError, match="what starts from the base is not finished"):
        compare(["mft"], source, out, spec)


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
        axes["ratios"] = draw(st.sampled_from(["0.1", "0.5", "0.1,0.5"]))
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
        return FUNCTIONS[name](source=data, out=out, spec=TrainingSpec(**spec), **{**axes, **more})

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
    ("gmt", "blocks", "1", "gmt has mask_ratio, scope, apply_to, include, exclude"),
    ("sft", "mask_ratio", "0.5", "sft has none"),
    ("hft", "mask_ratio", "0.5", "hft has include, exclude"),
    ("random-mask", "scope", "tensor", "random-mask has mask_ratio, apply_to"),
    ("lora", "blocks", "1", "lora has lora_rank, lora_alpha, lora_dropout"),
    ("mft", "lora_rank", 64, "mft has mask_ratio, blocks"),
    ("mft", "exclude", "mlp", "mft has mask_ratio, blocks"),
    ("l1-mask", "threshold", -0.03, "l1-mask has mask_ratio, blocks, modules, include"),
]


@pytest.mark.parametrize(("method", "option", "value", "own"), FOREIGN)
def test_an_option_of_another_method_is_refused_with_the_methods_own(
    source: TrainingData, tmp_path: Path, method: str, option: str, value: Any, own: str
) -> None:
    with pytest.raises(DeltaLensError, match=rf"{option}: an option of other methods \({own}"):
        TrainingSpec(method=method, **{option: value})
    flag = f"--{option.replace('_', '-')}"
    result = command(
        *("train", method, source.model, "--data", source.data, "-o", tmp_path / "out"),
        *(flag, value),
    )
    assert result.exit_code == 2, result.output
    shown = " ".join(result.output.split())
    assert f"{flag}: an option of other methods ({method} has" in shown
    if options_of(method) and method != "lora":
        assert f"--{options_of(method)[0].replace('_', '-')}" in shown
    assert not (tmp_path / "out").exists()


def test_an_option_without_a_method_is_refused_by_plain_fine_tuning(
    source: TrainingData, tmp_path: Path
) -> None:
    from deltalens.training.run import train

    with pytest.raises(DeltaLensError, match="mask_ratio: an option of other methods"):
        train(source.model, source.data, tmp_path / "out", TrainingSpec(mask_ratio="0.5"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "lora,sft", "--blocks", "1"], "--blocks: an option of other methods"),
        (["compare", "mft", "--scope", "layer"], "--scope: an option of other methods"),
        (["sweep", "mask-ratio", "gmt", "--mask-ratio", "0.3"], "give --ratios instead"),
        (["sweep", "mask-ratio", "mft", "--threshold", "-0.1"], "give --ratios instead"),
        (["sweep", "layers", "mft", "--blocks", "1"], "give --group instead"),
        (["sweep", "data-ratio", "sft", "--apply-to", "update"], "--apply-to: an option of other"),
        (["efficiency", "--methods", "hft", "--mask-ratio", "0.3"], "--mask-ratio: an option of"),
        (["compare", "mft,l1-mask", "--threshold", "-0.1"], "threshold: l1-mask would remove"),
    ],
)
def test_so_do_the_commands_that_train_over_and_over(
    source: TrainingData, tmp_path: Path, arguments: list[str], message: str
) -> None:
    place = next((n for n, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    given = [*arguments[:place], source.model, *arguments[place:], "--data", source.data]
    measured = [] if arguments[0] == "efficiency" else ["--eval-data", source.data]
    result = command(*given, *measured, "-o", tmp_path / "s")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()


def test_settings_that_a_study_goes_through_are_refused_in_python_too(
    source: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(DeltaLensError, match=r"mask_ratio: .*give ratios instead"):
        sweep_mask_ratio(["gmt"], source, tmp_path / "s", TrainingSpec(mask_ratio="0.3"))
    with pytest.raises(DeltaLensError, match=r"blocks: .*give sizes instead"):
        sweep_layers(["mft"], source, tmp_path / "s", TrainingSpec(blocks="1"))
    with pytest.raises(DeltaLensError, match="seed 3: the trainings of a study have seeds from 0"):
        compare(["mft"], source, tmp_path / "s", TrainingSpec(seed=3))
    assert not (tmp_path / "s").exists()


def test_a_study_says_which_seeds_it_has(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    compare(["mft"], source, tmp_path / "s", TrainingSpec(), seeds=2)
    compare(["mft"], source, tmp_path / "s", TrainingSpec(), seeds=1)
    assert load_study(tmp_path / "s").spec["seeds"] == 2


@pytest.mark.slow
def test_real_trainings_grow_to_the_last_bit(source: TrainingData, tmp_path: Path) -> None:
    """One-off drops, too, whose plain fine-tune is gone by then and is trained again."""
    spec = TrainingSpec(steps=2, batch_size=8, learning_rate=1e-2)
    parts: list[dict[str, Any]] = [
        {"methods": ["one-off-drop"], "ratios": "0.5", "seeds": 1},
        {"methods": ["gmt"], "ratios": "0.9", "seeds": 2},
    ]
    whole = {"methods": ["gmt", "one-off-drop"], "ratios": "0.5,0.9", "seeds": 2}
    for part in parts:
        sweep_mask_ratio(source=source, out=tmp_path / "s", spec=spec, **part)
    sweep_mask_ratio(source=source, out=tmp_path / "whole", spec=spec, **whole)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
