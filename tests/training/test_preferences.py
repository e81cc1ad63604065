"""Under DPO, preferences are what is measured: the numbers are those of trl's own evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens import load_study
from deltalens.errors import DeltaLensError
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.training_plans import TrainingData
from deltalens.training.methods import read_methods
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec
from tests.support.training_folders import preferences, write_rows

pytestmark = pytest.mark.parity

MEASURED = ["preference_accuracy", "dpo_loss", "reward_margin"]
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "gmt": {"mask_ratio": "0.5"},
    "mft": {"mask_ratio": "0.3"},
    "lora": {"lora_rank": 2, "learning_rate": 5e-2},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", preferences())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"{i}-{i % 5}=", "chosen": str(i - i % 5), "rejected": f"{i}{i}"}
        for i in range(20, 44)
    ]
    return write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", rows)


def spec(**more: Any) -> TrainingSpec:
    given = {"objective": "dpo", "steps": 4, "batch_size": 4, "learning_rate": 5e-3, **more}
    return training_spec(**given)


def of_trl(model: Path, reference: Path, rows: Path, out: Path, beta: float) -> dict[str, float]:
    """What trl's trainer says of a model on preferences, all in one batch."""
    import trl
    from datasets import Dataset

    read = [json.loads(line) for line in rows.read_text().splitlines()]
    config = trl.DPOConfig(
        str(out),
        beta=beta,
        per_device_eval_batch_size=len(read),
        report_to=[],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(reference),
        config,
        train_dataset=Dataset.from_list(read),
        eval_dataset=Dataset.from_list(read),
        processing_class=AutoTokenizer.from_pretrained(reference),
    )
    found = trainer.evaluate()
    names = ("rewards/accuracies", "loss", "rewards/margins")
    return {ours: found[f"eval_{name}"] for ours, name in zip(MEASURED, names, strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_measured_is_what_trl_measures(
    base: Path, pairs: Path, held_out: Path, tmp_path: Path, method: str
) -> None:
    own = spec(method=method, recipe={"beta": 0.3}, **METHODS[method])
    done = train(base, pairs, tmp_path / "out", own, eval_data=[held_out])
    wanted = of_trl(tmp_path / "out", base, held_out, tmp_path / "trl", 0.3)
    assert list(done.metrics) == MEASURED
    for name, value in wanted.items():
        assert done.metrics[name].value == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert 0 < wanted["preference_accuracy"] < 1
    assert abs(wanted["reward_margin"]) > 1e-3
    assert done.metrics["dpo_loss"].n == 24


def test_preferences_in_messages_are_measured_as_trl_measures_them(
    base: Path, tmp_path: Path
) -> None:
    model = tmp_path / "chat"
    shutil.copytree(base, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [
        {name: [{"role": roles[name], "content": text}] for name, text in row.items()}
        for row in preferences()
    ]
    file = write_rows(tmp_path / "messages.jsonl", rows)
    done = train(model, file, tmp_path / "out", spec(), eval_data=[file])
    wanted = of_trl(tmp_path / "out", model, file, tmp_path / "trl", 0.1)
    for name, value in wanted.items():
        assert done.metrics[name].value == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert wanted["dpo_loss"] < 0.69


def test_the_training_loss_has_its_unit(
    base: Path, pairs: Path, held_out: Path, tmp_path: Path
) -> None:
    """Before the first step chosen and rejected are as likely as under the reference: ln 2."""
    done = train(base, pairs, tmp_path / "out", spec(steps=1))
    assert done.loss == pytest.approx(0.6931, abs=1e-4)
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    assert record["facts"]["units"] == {"loss": "DPO loss, nats per preference"}
    assert TrainingSpec().loss_unit == "nats per target token"
    assert spec(recipe={"loss_type": ["hinge"]}).loss_unit == "DPO loss (hinge) per preference"


def test_the_best_moment_is_the_one_of_the_least_dpo_loss(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """On preferences the other way round, where training makes it worse at once."""
    turned = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in preferences()
    ]
    others = write_rows(tmp_path / "turned.jsonl", turned)
    given = {"eval_data": [others], "choose_on": others, "eval_every": 1}
    done = train(base, pairs, tmp_path / "out", spec(), **given)
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["choosing"]["dpo_loss"][0] for line in lines if "choosing" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best < 4
    assert done.metrics["dpo_loss"].value == pytest.approx(losses[best])


def test_rows_that_are_no_preferences_are_measured_by_their_targets(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    done = train(base, pairs, tmp_path / "out", spec(steps=1), eval_data=[rows])
    assert set(done.metrics) == {"exact_match", "loss", "perplexity"}


def test_a_sweep_under_dpo_has_one_off_drops_and_measures_preferences(
    base: Path, pairs: Path, held_out: Path, tmp_path: Path
) -> None:
    source = TrainingData(model=base, data=pairs, eval_data=[held_out])
    study = tmp_path / "study"
    given = {"mask_ratios": "0.5", "seeds": 1, "keep_checkpoints": True}
    methods = read_methods("gmt,one-off-drop")
    sweep_mask_ratio(methods, source, study, spec(), **given)
    record = load_study(study)
    cells = record.cells.set_index(["method", "mask_ratio", "metric"])["value"]
    assert set(record.cells["metric"]) == {*MEASURED, "training_loss"}
    assert record.facts["units"] == {"training_loss": "DPO loss, nats per preference"}
    dropped = study / "checkpoints" / "one-off-drop-0.5-0"
    wanted = of_trl(dropped, base, held_out, tmp_path / "trl", 0.1)
    for name, value in wanted.items():
        assert cells["one-off-drop", 0.5, name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert cells["one-off-drop", 0.5, "dpo_loss"] != cells["sft", 0.0, "dpo_loss"]


def test_a_beta_that_is_no_number(base: Path, pairs: Path, held_out: Path, tmp_path: Path) -> None:
    own = spec(recipe={"beta": "much"})
    with pytest.raises(DeltaLensError, match="beta 'much': not a number"):
        train(base, pairs, tmp_path / "out", own, eval_data=[held_out])
    assert not (tmp_path / "out").exists()
