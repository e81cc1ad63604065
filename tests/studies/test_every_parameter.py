"""Every parameter of every study's function is in the study's identity, or changes no number.

The parameters are taken from the signatures: a new one is red here until it has a row. A row says
what to change, and what has to come of it in the same folder: another study (refused by the name of
a field), growth, or nothing at all. That the last are rightly left out of the identity is shown by
real studies with and without each.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import deltalens
from deltalens.errors import DeltaLensError, RecordError
from deltalens.numerics.workers import one_thread
from deltalens.scoring import loading
from deltalens.scoring.tasks.scoring import StandardTasks
from deltalens.scoring.tasks.selection import TaskChoice, TaskSelection
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies import efficiency, paired
from deltalens.studies import evaluate as evaluation
from deltalens.studies.budgets import sweep_density, sweep_masks
from deltalens.studies.engine import StudyWatch
from deltalens.studies.executors import Execution
from deltalens.studies.landscape import scan
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, sweep_data_ratio, sweep_layers
from deltalens.studies.salience import study as salience
from deltalens.studies.training_plans import TrainingData
from deltalens.training.methods import method_of, read_methods
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.checkpoint_pairs import PairOf
from tests.support.fake_training import OPTIONS, fake_trainings
from tests.support.runs import FEW, write_rows
from tests.support.standard_tasks import write_tasks
from tests.support.studies import drop_study, evaluate, scan_landscape, sweep_layers_drop
from tests.support.training_folders import write_model

ROWS = [
    {"prompt": f"{a}+{b}>", "completion": f"={a + b}", "other": f"{b}+{a}>"}
    for a, b in ((1, 2), (3, 4), (5, 1), (2, 2))
]
WATCHED = StudyWatch(stage=lambda name, total: None)


@dataclass
class StudyCase:
    """A study's function, a small call of it, and what its parameters do."""

    function: Callable[..., Any]
    call: dict[str, Any]
    other: dict[str, Any]
    """In the identity: parameter -> another value."""
    grows: dict[str, Any] = field(default_factory=dict)
    """Axes: parameter -> more of it."""
    free: dict[str, Any] = field(default_factory=dict)
    """They change no number: parameter -> another value."""
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What both calls need for a parameter to make sense."""
    named: dict[str, str] = field(default_factory=dict)
    """The field that is named, where it is not called as the parameter."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, pair_of: PairOf) -> dict[str, StudyCase]:
    folder = tmp_path_factory.mktemp("inputs")
    pair = pair_of(family="llama")
    rows = write_rows(folder / "rows.jsonl", ROWS)
    fewer = write_rows(folder / "fewer.jsonl", ROWS[:2])
    tasks = write_tasks(folder / "tasks", 4)
    measured: dict[str, Any] = {
        "data": [rows],
        "metrics": ["loss", "kl"],
        "fidelity": FEW,
    }
    measuring: dict[str, Any] = {
        "data": [fewer],
        "metrics": ["loss"],
        "metric": lambda model: {"loss": 1.0},
        "version": "2",
        "answer_pattern": "[0-9]",
        "limit": 2,
        "fields": {"prompt": "other"},
        "fidelity": FidelityTexts(sequences=3, new_tokens=8),
        "device": "elsewhere",
        "dtype": "bfloat16",
        "batch_tokens": 64,
        "include": "mlp",
        "exclude": "mlp",
        "trust_remote_code": True,
        "tasks": [str(tasks / "choice.yaml")],
        "include_path": write_tasks(folder / "more-tasks", 5),
        "num_fewshot": 2,
        "batch_size": 2,
        "apply_chat_template": True,
    }
    own = {"metric": lambda model: {"loss": 2.0}}
    of_tasks = (
        *("include_path", "num_fewshot", "batch_size", "apply_chat_template"),
        "confirm_run_unsafe_code",
    )
    beside = {
        "version": own,
        "better": own,
        **{name: {"tasks": ["choice"], "include_path": tasks} for name in of_tasks},
    }
    named = {
        **{"limit": "data", "fields": "data", "version": "metric"},
        **dict.fromkeys(of_tasks, "tasks"),
    }
    free: dict[str, Any] = {
        "fresh": True,
        "watch": WATCHED,
        "strict": True,
        "better": {"loss": "lower"},
        "confirm_run_unsafe_code": True,
        "execution": Execution(devices=("cpu", "cpu"), jobs=2),
        "device_map": {"": "cpu"},
    }
    two = {"ft": pair.ft, "base": pair.base, **measured}
    rounded = pair_of(family="llama", dtype=torch.bfloat16)
    others = {"ft": rounded.ft, "base": rounded.base}
    found = {
        "drop_study": StudyCase(
            drop_study,
            {**two, "rates": "0.5", "seeds": 1},
            {**others, **measuring, "scope": "layer", "rescale": True, "changed_only": True},
            {"strategies": ["trivial"], "rates": "0.3", "seeds": 2},
            free,
            {**beside, "strategies": {}},
            named,
        ),
        "sweep_layers_drop": StudyCase(
            sweep_layers_drop,
            {**two, "groups": [2]},
            {**others, **measuring},
            {"groups": [1]},
            {**free, "cache_gb": 0.0},
            beside,
            named,
        ),
        "scan_landscape": StudyCase(
            scan_landscape,
            {"origin": pair.ft, "plane": "random", "grid": 3, **measured},
            {
                **measuring,
                "origin": pair.base,
                "others": [rounded.base],
                "base": pair.base,
                "plane": "hessian",
                "span": "-1:2",
                "normalize": "layer",
                "seed": 1,
                "loss": lambda model: torch.zeros(()),
            },
            {"grid": 5},
            {**free, "low_memory": True},
            {
                **beside,
                "others": {"plane": "line", "others": [pair.base]},
                "base": {"plane": "line", "others": [pair.base]},
            },
            {**named, "span": "range", "others": "models", "normalize": "normalise"},
        ),
    }
    unedited = {"include": "mlp", "exclude": "mlp"}
    found["evaluate"] = StudyCase(
        evaluate,
        {"models": {"ft": pair.ft}, "data": [rows], "metrics": ["loss", "exact_match"]},
        {name: each for name, each in measuring.items() if name not in {*unedited, "fidelity"}},
        {"models": {"base": pair.base}},
        {**free, **unedited, "fidelity": FidelityTexts(sequences=3, new_tokens=8)},
        beside,
        named,
    )
    base = write_model(folder / "base")
    source = TrainingData(model=base, data=rows, eval_data=[rows])
    trained: dict[str, Any] = {"source": source, "spec": TrainingSpec(steps=1, batch_size=2)}
    changed: dict[str, Any] = {
        "source": dataclasses.replace(source, limit=2),
        "spec": TrainingSpec(steps=2, batch_size=2),
    }
    kept: dict[str, Any] = {
        "keep_checkpoints": True,
        "execution": Execution(jobs=2),
        "fresh": True,
        "watch": WATCHED,
    }
    of_source = {"source": "data", "spec": "steps", "learning_rates": "learning_rate"}
    grid = {"learning_rates": (1e-3, 1e-4)}
    choosing = {"learning_rates": {"source": dataclasses.replace(source, choose_on=fewer)}}
    mft = read_methods("mft")
    more = {"methods": read_methods("sft"), "seeds": 2}
    found |= {
        "compare": StudyCase(
            compare,
            {"methods": mft, "seeds": 1, **trained},
            {**changed, **grid},
            {**more, "base": base},
            kept,
            {"base": {}, **choosing},
            of_source,
        ),
        "sweep_mask_ratio": StudyCase(
            sweep_mask_ratio,
            {"methods": mft, "mask_ratios": "0.2", "seeds": 1, **trained},
            {**changed, **grid},
            {**more, "mask_ratios": "0.1"},
            kept,
            choosing,
            of_source,
        ),
        "sweep_layers": StudyCase(
            sweep_layers,
            {"methods": mft, "group_sizes": [2], "seeds": 1, **trained},
            {**changed, **grid, "data_ratio": "0.5"},
            {**more, "group_sizes": [1]},
            kept,
            choosing,
            of_source,
        ),
        "sweep_data_ratio": StudyCase(
            sweep_data_ratio,
            {"methods": mft, "data_ratios": "1", "seeds": 1, **trained},
            {**changed, **grid},
            {**more, "data_ratios": "0.5"},
            kept,
            choosing,
            of_source,
        ),
        "sweep_density": StudyCase(
            sweep_density,
            {"methods": read_methods("lora"), "ranks": [1], "seeds": 1, **trained},
            {**changed, **grid, "targets": "linear"},
            {**more, "ranks": [2]},
            kept,
            choosing,
            of_source,
        ),
        "sweep_masks": StudyCase(
            sweep_masks,
            {
                "methods": read_methods("speft"),
                "scopes": ["global"],
                "refresh_every": [5],
                "seeds": 1,
                **trained,
            },
            {**changed, **grid, "methods": read_methods("speft:metric=snip")},
            {"seeds": 2, "scopes": ["layer"], "refresh_every": [6]},
            kept,
            choosing,
            {**of_source, "methods": "settings"},
        ),
        "efficiency": StudyCase(
            efficiency.efficiency,
            {
                "model": base,
                "data": rows,
                "spec": TrainingSpec(batch_size=2),
                "repeats": 1,
                "steps": 1,
                "methods": read_methods("sft"),
            },
            {
                "model": write_model(folder / "bf16", torch.bfloat16),
                "data": fewer,
                "spec": TrainingSpec(batch_size=1),
                "methods": read_methods("sft,hft"),
                "steps": 2,
                "fields": {"prompt": "other"},
                "limit": 2,
                "device": "elsewhere",
                "dtype": "bfloat16",
                "trust_remote_code": True,
            },
            {"repeats": 2},
            {"fresh": True, "watch": WATCHED},
            {},
            {"spec": "batch_size", "steps": "steps_in_block", "fields": "data", "limit": "data"},
        ),
        "salience_study": StudyCase(
            salience.salience_study,
            {
                "model": pair.base,
                "data": [rows],
                "metrics": ["gradient", "snip"],
                "density": "0.1",
                "steps": 2,
                "batch_size": 2,
            },
            {
                "model": rounded.base,
                "data": [fewer],
                "density": "0.2",
                "scope": "tensor",
                "targets": "linear",
                "steps": 1,
                "batch_size": 1,
                "max_length": 16,
                "expectation": "outside",
                "sign": -1,
                "hessian": "difference",
                "seed": 1,
                "fields": {"prompt": "other"},
                "limit": 2,
                "device": "elsewhere",
                "dtype": "bfloat16",
                "trust_remote_code": True,
            },
            {"metrics": ["gradient", "snip", "fisher"], "against": pair.ft},
            {"fresh": True, "watch": WATCHED, "device_map": {"": "cpu"}},
            {},
            {"fields": "data", "limit": "data"},
        ),
    }
    return found


NAMES = [
    *("drop_study", "sweep_layers_drop", "scan_landscape", "efficiency"),
    *("compare", "sweep_mask_ratio", "sweep_layers", "sweep_data_ratio"),
    *("sweep_density", "sweep_masks"),
    *("salience_study", "evaluate"),
]
TRAININGS = NAMES[4:-2]
WITH_ANY_SETTING = NAMES[4:8]
"""Those whose methods have no settings that `OPTIONS` lacks."""
METHODS = {
    "compare": "mft,l1-mask,lora-on-ft",
    "sweep_data_ratio": "mft,lora,gmt,hft",
}
"""Those with settings of their own, where it is not mft alone."""


@pytest.fixture(params=NAMES)
def study(request: pytest.FixtureRequest, studies: dict[str, StudyCase]) -> StudyCase:
    return studies[request.param]


def test_every_parameter_has_a_row(study: StudyCase) -> None:
    parameters = {*inspect.signature(study.function).parameters} - {"out"}
    rows = [*study.other, *study.grows, *study.free]
    assert parameters - {*rows} == set()
    assert len(rows) == len({*rows}), "one that is in the identity, and is not?"


def test_another_value_is_another_study_in_words(
    study: StudyCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_trainings(monkeypatch)
    parameters = inspect.signature(study.function).parameters
    for name, value in study.other.items():
        if name not in parameters:
            continue
        out, call = tmp_path / name, {**study.call, **study.beside.get(name, {})}
        study.function(out=out, **call)
        before = (out / "study.json").read_bytes(), (out / "cells.csv").read_bytes()
        with monkeypatch.context() as patch:
            if name == "device":
                elsewhere(patch)
            with pytest.raises(RecordError, match="holds another study") as raised:
                study.function(out=out, **{**call, name: value})
        fields = [line.split(":")[0].strip(" -") for line in str(raised.value).splitlines()[1:]]
        wanted = study.named.get(name, name)
        assert any(one.split(".")[0] == wanted for one in fields), (name, fields)
        assert before == ((out / "study.json").read_bytes(), (out / "cells.csv").read_bytes())


def elsewhere(patch: pytest.MonkeyPatch) -> None:
    """As if there were an accelerator: nothing is loaded before the identity is compared."""
    for module in (paired, scan, efficiency, salience, evaluation):
        patch.setattr(module, "pick_device", lambda name: torch.device("cuda"))
        patch.setattr(module, "check_room", lambda *given: None, raising=False)
    patch.setattr(loading, "check_fits", lambda *given: None)


def test_more_of_an_axis_grows_the_study(
    study: StudyCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_trainings(monkeypatch)
    for name, value in study.grows.items():
        call = {**study.call, **study.beside.get(name, {})}
        if name == "strategies":
            call["strategies"] = ["salient"]
        changed = {**call, name: value}
        if name == "base":
            changed["methods"] = read_methods("base")
        first = study.function(out=tmp_path / name, **call)
        grown = study.function(out=tmp_path / name, **changed)
        assert len(grown.cells) > len(first.cells), name


@pytest.mark.slow
def test_what_is_left_out_changes_no_number(study: StudyCase, tmp_path: Path) -> None:
    """All of it really runs; timings alone differ from run to run."""
    timed = study.function is efficiency.efficiency
    columns = slice(0, 3) if timed else slice(None)
    with one_thread():
        for name, value in study.free.items():
            call = {**study.call, **study.beside.get(name, {})}
            tables = []
            for how in ({}, {name: value}):
                out = tmp_path / f"{name}-{len(how)}"
                record = study.function(out=out, **call, **how)
                lines = (record.path / "cells.csv").read_text().splitlines()
                tables.append([line.split(",")[columns] for line in lines])
            assert tables[0] == tables[1], name
            # Nor is it another study: the same folder takes both.
            if name != "fresh":
                study.function(out=tmp_path / f"{name}-0", **call, **{name: value})


@pytest.mark.parametrize("name", WITH_ANY_SETTING)
def test_every_shared_setting_is_in_the_identity_or_refused(
    studies: dict[str, StudyCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake_trainings(monkeypatch)
    study = studies[name]
    call = {**study.call, "methods": read_methods(METHODS.get(name, "mft"))}
    study.function(out=tmp_path / "s", **call)
    for one in dataclasses.fields(TrainingSpec):
        if one.name == "method":  # The cell's, whatever it is here.
            other = call["spec"].of(method_of("gmt"))
            study.function(out=tmp_path / "s", **{**call, "spec": other})
            continue
        values = {**OPTIONS, "objective": ["dpo"], "seed": [3], "steps": [3]}[one.name]
        other = dataclasses.replace(call["spec"], **{one.name: values[-1]})
        with pytest.raises(DeltaLensError) as raised:
            study.function(out=tmp_path / "s", **{**call, "spec": other})
        said = str(raised.value)
        assert one.name in said or "rather" in said, (one.name, said)
        assert "holds another study" in said or one.name == "seed"


@pytest.mark.parametrize("name", WITH_ANY_SETTING)
def test_every_setting_of_a_method_is_in_the_identity_or_refused(
    studies: dict[str, StudyCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake_trainings(monkeypatch)
    study, methods = studies[name], read_methods(METHODS.get(name, "mft"))
    study.function(out=tmp_path / "s", **{**study.call, "methods": methods})
    for method in methods:
        for setting in method.own_settings():
            other = dataclasses.replace(method, **{setting: OPTIONS[setting][-1]})
            changed = [other if one is method else one for one in methods]
            with pytest.raises(DeltaLensError) as raised:
                study.function(out=tmp_path / "s", **{**study.call, "methods": changed})
            said = str(raised.value)
            # A complement is recorded as the ratio of the weights that it removes.
            recorded = "mask_ratio" if setting == "complement" else setting
            where = f"settings.{method.name}.{recorded}"
            another = "holds another study" in said and where in said
            varied = f"{method.name}: {setting} is varied by this study" in said
            unfair = setting == "threshold" and "would mask the default ratio" in said
            assert another or varied or unfair, (method.name, setting, said)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_part_of_the_source_is_in_the_identity(
    studies: dict[str, StudyCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    fake_trainings(monkeypatch)
    study, source = studies[name], studies[name].call["source"]
    fewer = write_rows(tmp_path / "fewer.jsonl", ROWS[:2])
    values: dict[str, Any] = {
        "model": write_model(tmp_path / "bf16", torch.bfloat16),
        "data": fewer,
        "eval_data": [fewer],
        "fields": {"prompt": "other"},
        "limit": 2,
        "choose_on": fewer,
        "eval_every": 1,
        "device": "elsewhere",
        "dtype": "bfloat16",
        "trust_remote_code": True,
        "tasks": StandardTasks(
            TaskSelection(
                choices=(TaskChoice("choice"),), include_path=write_tasks(tmp_path / "tasks", 4)
            )
        ),
    }
    study.function(out=tmp_path / "s", **study.call)
    for one in dataclasses.fields(TrainingData):
        other = dataclasses.replace(source, **{one.name: values[one.name]})
        with monkeypatch.context() as patch:
            if one.name == "device":
                for module in ("trainings", "mft_sweeps"):
                    where = f"deltalens.studies.{module}.pick_device"
                    patch.setattr(where, lambda name: torch.device("cuda"))
            wanted = {"fields": "data", "limit": "data"}.get(one.name, one.name)
            with pytest.raises(RecordError, match=rf"another study[\s\S]*{wanted}[.\w]*: "):
                study.function(out=tmp_path / "s", **{**study.call, "source": other})


def test_every_parameter_of_a_training_is_in_its_identity_or_changes_nothing(
    tmp_path: Path, studies: dict[str, StudyCase]
) -> None:
    source = studies["compare"].call["source"]
    fewer = write_rows(tmp_path / "fewer.jsonl", ROWS[:2])
    own = TrainingSpec(steps=4, batch_size=2, learning_rate=1e-2)
    call: dict[str, Any] = {"model": source.model, "data": source.data, "spec": own}

    def interrupt(done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    begun = train(out=tmp_path / "s", **call, watch=TrainingWatch(at=interrupt))
    assert not begun.finished
    other: dict[str, Any] = {
        "model": write_model(tmp_path / "bf16", torch.bfloat16),
        "data": fewer,
        "spec": dataclasses.replace(own, learning_rate=1e-3),
        "fields": {"prompt": "other"},
        "limit": 2,
        "eval_data": [fewer],
        "eval_every": 1,
        "choose_on": fewer,
        "probe": {"every": 1},
        "dtype": "bfloat16",
        "device": "cuda",
        "trust_remote_code": True,
    }
    free: dict[str, Any] = {
        "checkpoint_every": 1,
        "keep_checkpoints": True,
        "report_to": ["tensorboard"],
        "watch": TrainingWatch(),
    }
    parameters = {*inspect.signature(train).parameters} - {"out", "resume"}
    assert parameters == {*other} | {*free}
    for name, value in other.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "device":
                where = "deltalens.training.run.pick_device"
                patch.setattr(where, lambda name: torch.device("cuda"))
            with pytest.raises(RecordError, match="holds another training"):
                train(out=tmp_path / "s", resume=True, **{**call, name: value})
    resumed = train(out=tmp_path / "s", resume=True, **call)
    assert resumed.finished
    made = [(tmp_path / "s" / "model.safetensors").read_bytes()]
    for name, value in free.items():
        train(out=tmp_path / name, **call, **{name: value})
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert len({*made}) == 1


def test_the_list_is_of_all_functions_that_make_a_study() -> None:
    """Whoever opens a study's folder is in it, or is no study that could be gone on with."""
    root = Path(deltalens.__file__).parent
    opening = {
        file.relative_to(root).as_posix()
        for file in (root / "studies").rglob("*.py")
        if "StudyFolder.open(" in file.read_text() or "run_trainings(" in file.read_text()
    }
    assert opening == {
        "studies/drop_study.py",
        "studies/evaluate.py",
        "studies/layer_drop.py",
        "studies/landscape/scan.py",
        "studies/efficiency.py",
        "studies/trainings.py",
        "studies/mask_ratio.py",
        "studies/mft_sweeps.py",
        "studies/budgets.py",
        "studies/salience/study.py",
        "studies/inspect.py",  # Always begins anew.
    }
