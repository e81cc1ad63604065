"""What is measured of labels is what transformers, scipy and plain loops compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from deltalens.errors import DataError, DeltaLensError
from deltalens.scoring.rows import DataFile, read_rows
from deltalens.scoring.sentence_scoring import SentenceScoring
from deltalens.scoring.sentences import encode_sentences, give_padding
from deltalens.scoring.statistics import correlation, f1_score
from tests.support.models import ids_of, initialized, tiny, tokenizer
from tests.support.training_folders import comparisons, scores, write_rows

pytestmark = pytest.mark.parity

HEADS = {
    "bert": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "llama": transformers.LlamaForSequenceClassification,
    "gpt2": transformers.GPT2ForSequenceClassification,
    "opt": transformers.OPTForSequenceClassification,
    "qwen2": transformers.Qwen2ForSequenceClassification,
}


def headed(architecture: str, classes: int = 2, **settings: Any) -> Any:
    """A model with a head over sequences, its weights large enough that rows differ."""
    given = {**ids_of(tokenizer()), "num_labels": classes, "initializer_range": 0.5, **settings}
    return initialized(lambda: tiny(architecture, head=HEADS[architecture], **given), 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> DataFile:
    return read_rows(write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", comparisons()))


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> DataFile:
    return read_rows(write_rows(tmp_path_factory.mktemp("singles") / "one.jsonl", scores()))


def of_transformers(model: Any, data: DataFile) -> Any:
    """Loss and logits of all rows in one batch, tokenized and padded as a user would."""
    texts = [list(column) for column in zip(*(row.sentences for row in data.rows), strict=True)]
    batch = tokenizer()(*texts, padding=True, truncation=True, return_tensors="pt")
    labels = torch.tensor([row.label for row in data.rows])
    with torch.inference_mode():
        return model(**batch, labels=labels)


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_classes_are_measured_as_transformers_computes_them(
    architecture: str, batch_tokens: int, pairs: DataFile
) -> None:
    model = headed(architecture)
    scoring = SentenceScoring(pairs, model, tokenizer(), batch_tokens)
    found = scoring.measure(model)
    wanted = of_transformers(model, pairs)
    labels = torch.tensor([row.label for row in pairs.rows])
    right = (wanted.logits.argmax(-1) == labels).double().mean()
    assert found["cross_entropy"].value == pytest.approx(float(wanted.loss), rel=1e-5)
    assert found["accuracy"].value == pytest.approx(float(right))
    assert 0 < found["accuracy"].value < 1
    assert (found["f1"].n, scoring.left_out) == (40, 0)


@pytest.mark.parametrize("architecture", HEADS)
def test_scores_are_measured_as_transformers_and_scipy_compute_them(
    architecture: str, singles: DataFile
) -> None:
    model = headed(architecture, classes=1)
    found = SentenceScoring(singles, model, tokenizer(), 64).measure(model)
    wanted = of_transformers(model, singles)
    predicted = wanted.logits[:, 0].double().numpy()
    r = scipy.stats.pearsonr(predicted, [row.label for row in singles.rows]).statistic
    assert list(found) == ["pearson", "squared_error"]
    assert found["squared_error"].value == pytest.approx(float(wanted.loss), rel=1e-5)
    assert found["pearson"].value == pytest.approx(r, rel=1e-5)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_parts_of_the_loss_add_up_to_it_and_have_its_gradient(
    classes: int, pairs: DataFile
) -> None:
    model = headed("llama", classes)
    scoring = SentenceScoring(pairs, model, tokenizer(), 64)
    total = sum((part(model) for part in scoring.loss_parts()), torch.zeros(()))
    assert float(total.detach()) == pytest.approx(
        scoring.measure(model)[scoring.deciding_metric].value
    )
    (slope,) = torch.autograd.grad(total, [model.score.weight])
    assert float(slope.abs().max()) > 0


def test_tokens_are_those_of_run_glue_cut_where_the_longer_sentence_is(pairs: DataFile) -> None:
    model = headed("bert")
    texts = [list(column) for column in zip(*(row.sentences for row in pairs.rows), strict=True)]
    wanted = _with_types()(*texts, truncation=True, max_length=5)
    examples = encode_sentences(pairs, _with_types(), 5, model)
    assert {*examples[0]} == {"input_ids", "attention_mask", "token_type_ids"}
    for name in examples[0]:
        assert [example[name] for example in examples] == wanted[name], name
    assert max(len(example["input_ids"]) for example in examples) == 5
    assert examples[0]["token_type_ids"][-1] == 1
    decoder = encode_sentences(pairs, _with_types(), None, headed("llama"))
    assert {*decoder[0]} == {"input_ids", "attention_mask"}


def test_without_a_padding_token_a_decoder_reads_one_row_at_a_time(pairs: DataFile) -> None:
    padded, bare = headed("llama"), headed("llama", pad_token_id=None)
    found = SentenceScoring(pairs, bare, tokenizer(), 4096).measure(bare)
    wanted = SentenceScoring(pairs, padded, tokenizer(), 4096).measure(padded)
    assert found["cross_entropy"].value == pytest.approx(wanted["cross_entropy"].value, rel=1e-5)


def test_padding_is_the_tokenizer_s_or_the_end_of_a_sequence(tmp_path: Path) -> None:
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, eos_token="</s>"
    )
    model = headed("llama", pad_token_id=None)
    said = give_padding(model, tokens, tmp_path)
    assert model.config.pad_token_id == tokens.eos_token_id
    assert said is not None
    assert "eos_token_id" in said
    assert give_padding(model, tokens, tmp_path) is None
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(DeltaLensError, match="neither configuration nor tokenizer"):
        give_padding(headed("llama", pad_token_id=None), bare, tmp_path)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_f1_is_that_of_class_one_or_the_mean_over_the_classes_that_occur(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    predicted, actual = (torch.randint(min(classes, 4), (50,), generator=generator) for _ in "ab")
    scores = []
    for number in {*predicted.tolist(), *actual.tolist()} if classes > 2 else {1}:
        hits = sum((p == number and a == number) for p, a in zip(predicted, actual, strict=True))
        said, true = int((predicted == number).sum()), int((actual == number).sum())
        scores.append(2 * int(hits) / (said + true))
    assert f1_score(predicted, actual, classes).value == pytest.approx(sum(scores) / len(scores))


def test_f1_without_a_hit_or_a_case_is_zero() -> None:
    none = torch.zeros(4, dtype=torch.int64)
    assert f1_score(none, none, 2)[:2] == (0.0, 0.0)
    assert f1_score(none, 1 - none, 2).value == 0.0


def test_standard_errors_are_those_of_leaving_one_row_out_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator)
    y = x + torch.randn(400, generator=generator)
    predicted, actual = (x > 0).long() + (x > 1).long(), (y > 0).long() + (y > 1).long()

    def jackknife(value: Any) -> float:
        left = np.array([value([n for n in range(400) if n != out]) for out in range(400)])
        return math.sqrt(399 / 400 * float(((left - left.mean()) ** 2).sum()))

    r = jackknife(lambda rows: float(np.corrcoef(x[rows], y[rows])[0, 1]))
    assert correlation(x, y).stderr == pytest.approx(r, rel=0.02)
    for classes, wanted in ((3, predicted), (2, predicted.clamp(max=1))):
        true = actual.clamp(max=classes - 1)
        f1 = jackknife(
            lambda rows, p=wanted, a=true, c=classes: f1_score(p[rows], a[rows], c).value
        )
        assert f1_score(wanted, true, classes).stderr == pytest.approx(f1, rel=0.02)


def test_a_constant_prediction_correlates_with_nothing() -> None:
    assert correlation(torch.ones(4), torch.arange(4.0)).value == 0.0
    assert math.isnan(correlation(torch.tensor([1.0, math.nan]), torch.arange(2.0)).value)


def test_logits_that_are_no_numbers_make_every_metric_nan(pairs: DataFile, tmp_path: Path) -> None:
    model = headed("bert")
    scoring = SentenceScoring(pairs, model, tokenizer(), 64)
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    assert all(math.isnan(measured.value) for measured in scoring.measure(model).values())
    with pytest.raises(DeltaLensError, match="NaN or infinite logits"):
        scoring.check(model, tmp_path)


@pytest.mark.bad_input
def test_a_model_without_the_head_is_refused(pairs: DataFile, singles: DataFile) -> None:
    causal = tiny("llama", **ids_of(tokenizer()))
    with pytest.raises(DeltaLensError, match="LlamaForCausalLM has none"):
        SentenceScoring(pairs, causal, tokenizer(), 64)
    with pytest.raises(DeltaLensError, match="need a tokenizer"):
        SentenceScoring(pairs, headed("llama"), None, 64)
    with pytest.raises(DataError, match="cannot be used for classification"):
        SentenceScoring(singles, headed("llama"), tokenizer(), 64)
    scoring = SentenceScoring(pairs, headed("llama"), tokenizer(), 64)
    with pytest.raises(
        DeltaLensError, match="LlamaForCausalLM has no head for the labels of pairs"
    ):
        scoring.measure(causal)


@pytest.mark.bad_input
def test_tokens_that_the_model_does_not_have_are_refused(pairs: DataFile) -> None:
    with pytest.raises(DataError, match="line 1: the tokenizer produces token"):
        encode_sentences(pairs, tokenizer(), None, headed("bert", vocab_size=4))
    with pytest.raises(DataError, match="has only 1 "):
        encode_sentences(pairs, _with_types(), None, headed("bert", type_vocab_size=1))


def _with_types() -> Any:
    """A tokenizer that gives the second sentence a type of its own."""
    from tokenizers import Tokenizer, processors

    tokens = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, model_input_names=names)
