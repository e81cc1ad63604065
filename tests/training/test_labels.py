"""Rows with labels train a head over sequences: of encoders and decoders, by every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from deltalens.errors import DeltaLensError
from deltalens.methods.new_head import exclude_new_head, mark_new_head
from deltalens.names import NameFilter
from deltalens.scoring.rows import read_rows
from deltalens.scoring.sentence_scoring import SentenceScoring
from deltalens.training.recipe import read_recipe
from deltalens.training.run import Trained, train
from deltalens.training.spec import TrainingSpec
from tests.support.models import FAMILIES, initialized, save, tokenizer
from tests.support.specs import training_spec
from tests.support.training_folders import comparisons, preferences, scores, write_rows

pytestmark = pytest.mark.parity

METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "gmt": {"mask_ratio": "0.9"},
    "random-mask": {"mask_ratio": "0.9"},
    "hft": {},
    "mft": {"mask_ratio": "0.3"},
    "lora": {"lora_rank": 2},
    "pissa": {"lora_rank": 2},
    "speft": {"density": "0.1"},
}
NEW = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "llama": ("score",),
    "gpt2": ("score",),
    "opt": ("score",),
    "qwen2": ("score",),
}
"""The modules of the new head of each architecture."""


def spec(**more: Any) -> TrainingSpec:
    return training_spec(**{"steps": 3, "batch_size": 4, "learning_rate": 1e-2, **more})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of language models without a head over sequences."""
    folder = tmp_path_factory.mktemp("models")
    for name in NEW:
        save(initialized(lambda name=name: FAMILIES[name](False), 0), folder / name)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    return write_rows(folder / "pairs.jsonl", comparisons(names=True))


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("singles") / "singles.jsonl", scores())


def untrained(folder: Path, seed: int = 0) -> Any:
    """The model as transformers gives it a head after `set_seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def written(folder: Path) -> Any:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize("architecture", NEW)
@pytest.mark.parametrize("method", ["sft", "lora"])
def test_what_is_written_is_a_classifier_of_transformers_with_the_same_metrics(
    models: Path, pairs: Path, tmp_path: Path, architecture: str, method: str
) -> None:
    own = spec(method=method, **METHODS[method])
    done = train(models / architecture, pairs, tmp_path / "out", own, eval_data=[pairs])
    model = written(tmp_path / "out")
    assert model.config.id2label == {0: "less", 1: "more"}
    assert model.config.problem_type == "single_label_classification"
    found = SentenceScoring(read_rows(pairs), model.eval(), tokenizer(), 4096).measure(model)
    assert list(done.metrics) == ["accuracy", "f1", "cross_entropy"]
    for name, measured in done.metrics.items():
        assert found[name].value == pytest.approx(measured.value, rel=1e-6), name
    before = dict(untrained(models / architecture).named_parameters())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {f"{module}.weight" for module in NEW[architecture]} <= changed
    assert any("classification: the rows have 2 classes (less, more)" in n for n in done.notes)
    assert any(f"new head: {NEW[architecture][0]}" in note for note in done.notes)


@pytest.mark.parametrize("method", METHODS)
def test_a_new_head_trains_whole_whatever_the_method_does(
    models: Path, pairs: Path, tmp_path: Path, method: str
) -> None:
    train(models / "bert", pairs, tmp_path / "out", spec(method=method, **METHODS[method], steps=1))
    before = dict(untrained(models / "bert").named_parameters())
    moved = {
        name: float((p != before[name]).float().mean())
        for name, p in written(tmp_path / "out").named_parameters()
    }
    assert [moved[f"{module}.weight"] for module in NEW["bert"]] == [1.0, 1.0]
    block = moved["bert.encoder.layer.0.attention.self.query.weight"]
    if method in ("gmt", "random-mask"):
        assert 0 < block <= 0.11
    if method == "speft":
        attention = [share for name, share in moved.items() if ".attention.self." in name]
        assert any(0 < share < 0.5 for share in attention)
    if method == "mft":
        assert block == pytest.approx(0.3, abs=0.01)
        assert moved["bert.embeddings.word_embeddings.weight"] == 0


def test_lora_s_adapter_has_the_new_head(models: Path, pairs: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    own = spec(method="lora", lora_rank=2)
    done = train(models / "bert", pairs, tmp_path / "out", own, eval_data=[pairs])
    assert done.adapter is not None
    settings = json.loads((done.adapter / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    adapted = PeftModel.from_pretrained(untrained(models / "bert", seed=9), done.adapter)
    merged, model = adapted.merge_and_unload().eval(), written(tmp_path / "out").eval()
    batch = tokenizer()(["1+1", "2"], ["3", "4"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found, wanted = (one(**batch).logits for one in (merged, model))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_the_head_is_drawn_from_the_training_s_seed(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    """A training at rate 0 leaves it as it was drawn; the global generator has no part in it."""
    for seed in (0, 1):
        torch.manual_seed(5 + seed)
        own = spec(seed=seed, learning_rate=1e-30, steps=1)
        train(models / "llama", pairs, tmp_path / str(seed), own)
        head = written(tmp_path / str(seed)).score.weight
        assert torch.allclose(head, untrained(models / "llama", seed).score.weight, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_training_is_that_of_transformers_trainer(
    models: Path, pairs: Path, tmp_path: Path, architecture: str
) -> None:
    """As `run_glue` does it, with the same schedule: the same weights, bit for bit."""
    train(models / architecture, pairs, tmp_path / "out", spec(accumulate=2))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    tokens, numbers = tokenizer(), {"less": 0, "more": 1}
    data = [
        {
            **tokens(row["sentence1"], row["sentence2"], truncation=True),
            "label": numbers[row["label"]],
        }
        for row in rows
    ]
    options = transformers.TrainingArguments(
        str(tmp_path / "plain"),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        seed=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    model = untrained(models / architecture)
    trainer = transformers.Trainer(
        model, options, transformers.DataCollatorWithPadding(tokens), train_dataset=data
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    ours = dict(written(tmp_path / "out").named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, ours[name]), name


def test_scores_are_learned_by_regression(models: Path, singles: Path, tmp_path: Path) -> None:
    own = spec(steps=30, learning_rate=3e-3)
    done = train(models / "llama", singles, tmp_path / "out", own, eval_data=[singles])
    assert list(done.metrics) == ["pearson", "squared_error"]
    assert done.metrics["pearson"].value > 0.5
    assert done.loss_unit == "squared error per row"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["id2label"], config["problem_type"]) == ({"0": "LABEL_0"}, "regression")
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    assert record["asked"]["objective"] == "regression"
    assert "labels" not in record["asked"]


def test_the_record_has_the_objective_and_its_classes(
    models: Path, pairs: Path, tmp_path: Path
) -> None:
    train(models / "bert", pairs, tmp_path / "out", spec(steps=1))
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    assert record["asked"]["objective"] == "classification"
    assert record["asked"]["labels"] == ["less", "more"]
    assert record["facts"]["units"] == {"loss": "cross-entropy, nats per row"}


def test_a_classifier_goes_on_with_its_own_head(models: Path, pairs: Path, tmp_path: Path) -> None:
    first = train(models / "bert", pairs, tmp_path / "first", spec(), eval_data=[pairs])
    numbers = write_rows(tmp_path / "numbers.jsonl", comparisons())
    own = spec(learning_rate=1e-30)
    second = train(first.path, numbers, tmp_path / "second", own, eval_data=[pairs])
    assert second.metrics["cross_entropy"].value == pytest.approx(
        first.metrics["cross_entropy"].value
    )
    assert not any("new head" in note for note in second.notes)
    third = write_rows(tmp_path / "third.jsonl", [{"sentence": "1", "label": n} for n in range(3)])
    with pytest.raises(DeltaLensError, match=r"(?s)line 3: label 2: not one of the 2 classes"):
        train(first.path, third, tmp_path / "third", own)
    floats = write_rows(tmp_path / "floats.jsonl", scores())
    with pytest.raises(DeltaLensError, match="cannot be used for classification"):
        train(first.path, floats, tmp_path / "floats", own)
    with pytest.raises(DeltaLensError, match="the model's own head is for classification"):
        train(first.path, floats, tmp_path / "floats", spec(objective="regression"))
    masked = train(first.path, pairs, tmp_path / "masked", spec(method="l1-mask"))
    assert masked.finished


@pytest.mark.parametrize("method", ["sft", "mft", "lora", "speft"])
def test_the_checkpoint_with_the_least_loss_is_kept(
    models: Path, pairs: Path, tmp_path: Path, method: str
) -> None:
    """With its head: at such a constant rate it is not the last one."""
    constant = {"lr_scheduler_type": "constant"}
    given = {"steps": 4, "learning_rate": 5e-1, "recipe": constant, **METHODS[method]}
    own = spec(method=method, **given)
    rows: dict[str, Any] = {"choose_on": pairs, "eval_every": 1, "eval_data": [pairs]}
    done = train(models / "bert", pairs, tmp_path / "out", own, **rows)
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    losses = [line["choosing"]["cross_entropy"][0] for line in lines if "choosing" in line]
    assert done.metrics["cross_entropy"].value == pytest.approx(min(losses), rel=1e-5)
    assert min(losses) < losses[-1]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([{"text": "a"}] * 2, {"objective": "classification"}, "needs rows with 'sentence1'"),
        (comparisons(), {"objective": "dpo"}, "DPO learns from preferences"),
        (comparisons(), {"loss_on": "all"}, "loss_on 'all': the loss of classification"),
        (comparisons(), {"recipe": {"packing": True}}, "packing: options of trl's trainer"),
        (comparisons(), {"method": "l1-mask"}, "l1-mask: trains nothing, so a new head"),
        (comparisons(), {"method": "random-mask-weights"}, "would stay random"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    models: Path, tmp_path: Path, rows: list[Any], given: dict[str, Any], message: str
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DeltaLensError, match=message):
        train(models / "bert", file, tmp_path / "out", spec(**given))
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_held_out_rows_have_labels_of_the_same_kind(
    models: Path, pairs: Path, singles: Path, tmp_path: Path
) -> None:
    others = write_rows(tmp_path / "others.jsonl", preferences())
    for rows, held_out, message in (
        (pairs, others, "the rows have no labels, which classification needs"),
        (others, pairs, "has labels, but the rows to train on have none"),
        (pairs, singles, "names in some rows and numbers in others"),
    ):
        for given in ({"eval_data": [held_out]}, {"choose_on": held_out}):
            with pytest.raises(DeltaLensError, match=message):
                train(models / "bert", rows, tmp_path / "out", spec(), **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_a_kind_of_model_that_has_no_such_head_is_refused(pairs: Path, tmp_path: Path) -> None:
    from tests.support.models import ids_of, tiny

    save(tiny("mamba", **ids_of(tokenizer())), tmp_path / "mamba")
    with pytest.raises(DeltaLensError, match="transformers has none for models of type 'mamba'"):
        train(tmp_path / "mamba", pairs, tmp_path / "out", spec())
    save(FAMILIES["bert"](False), tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(DeltaLensError, match="has no tokenizer"):
        train(tmp_path / "bare", pairs, tmp_path / "out", spec())


def test_a_decoder_without_a_padding_token_gets_the_end_of_a_sequence(
    pairs: Path, tmp_path: Path
) -> None:
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, eos_token="</s>"
    )
    model = initialized(lambda: FAMILIES["gpt2"](False), 0)
    model.config.pad_token_id = None
    save(model, tmp_path / "model", tokens=tokens)
    done: Trained = train(tmp_path / "model", pairs, tmp_path / "out", spec(), eval_data=[pairs])
    assert written(tmp_path / "out").config.pad_token_id == tokens.eos_token_id
    assert any("had no padding token" in note for note in done.notes)


def test_a_configuration_of_transformers_is_read_for_labels(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("max_grad_norm: 0.5\n")
    assert read_recipe(file, "classification") == {"max_grad_norm": 0.5}
    file.write_text("packing: true\n")
    with pytest.raises(DeltaLensError, match="packing: unknown"):
        read_recipe(file, "regression")


def test_what_a_mask_excludes_already_stays_excluded() -> None:
    model = torch.nn.Linear(2, 2)
    assert exclude_new_head(model, {"exclude": "norm"}) == {"exclude": "norm"}
    mark_new_head(model, ["a.weight"])
    excluded = NameFilter(None, exclude_new_head(model, {"exclude": "norm|b"})["exclude"])
    names = ["a.weight", "xa.weight", "a-weight", "b", "norm.weight"]
    assert [name for name in names if name in excluded] == ["xa.weight", "a-weight"]
