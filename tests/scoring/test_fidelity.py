"""Fidelity: how far a model is from the fine-tune, on texts that the fine-tune writes itself."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import deltalens
from deltalens.io.records import read_texts
from deltalens.scoring.fidelity import KEPT, Fidelity, sample_texts
from deltalens.scoring.texts import FidelityTexts
from tests.support.checkpoint_pairs import PairOf, fine_tune, plain, save_pair
from tests.support.models import initialized, llama, tiny, tokenizer
from tests.support.runs import FEW, succeeds
from tests.support.studies import drop_study


def two_models(vocabulary: int, **more: Any) -> tuple[Any, Any]:
    """A fine-tune and what became of it."""
    ft = initialized(lambda: llama(False, vocab_size=vocabulary, **more), seed=5)
    other = initialized(lambda: llama(False, vocab_size=vocabulary, **more), seed=5)
    fine_tune(ft, scale=0.3)
    fine_tune(other, scale=0.3)
    fine_tune(other, seed=9, scale=0.1)
    return ft, other


def divergence_by_hand(ft: Any, other: Any, texts: list[list[int]]) -> tuple[float, float, int]:
    """KL over the whole vocabulary, text by text: mean per token, its standard error, texts."""
    sums, counts = [], []
    for text in texts:
        ids = torch.tensor([text])
        with torch.inference_mode():
            p = ft(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            q = other(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        sums.append(float((p.exp() * (p - q)).sum()))
        counts.append(len(text) - 1)
    value, n = sum(sums) / sum(counts), len(texts)
    spread = sum((s - value * c) ** 2 for s, c in zip(sums, counts, strict=True)) / (n - 1)
    return value, math.sqrt(spread * n) / sum(counts), n


@pytest.mark.parametrize("vocabulary", [57, KEPT])
def test_divergence_is_exact_where_the_vocabulary_is_no_larger_than_what_is_kept(
    vocabulary: int,
) -> None:
    ft, other = two_models(vocabulary)
    texts = sample_texts(ft, 12, 20, seed=0)
    found = Fidelity(ft, texts).measure(other)["kl"]
    value, stderr, n = divergence_by_hand(ft, other, texts)
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.stderr == pytest.approx(stderr, rel=1e-3)
    assert found.n == n
    assert value > 0.01


def test_divergence_is_a_lower_bound_for_a_larger_vocabulary() -> None:
    ft, other = two_models(4 * KEPT)
    texts = sample_texts(ft, 8, 10, seed=0)
    found = Fidelity(ft, texts).measure(other)["kl"].value
    whole = divergence_by_hand(ft, other, texts)[0]
    assert 0.1 * whole < found < whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [57, 4 * KEPT])
def test_fine_tune_is_at_no_distance_from_itself(dtype: torch.dtype, vocabulary: int) -> None:
    ft, _ = two_models(vocabulary)
    ft.to(dtype)
    found = Fidelity(ft, sample_texts(ft, 40, 12, seed=0)).measure(ft)
    assert found["kl"].value == 0
    assert found["kl"].stderr == 0
    assert found["top1_agreement"].value == 1


def test_agreement_is_one_where_bf16_logits_tie() -> None:
    model = initialized(lambda: llama(False), seed=5)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = Fidelity(model, sample_texts(model, 4, 12, seed=0)).measure(model)
    assert found["top1_agreement"].value == 1


def test_agreement_is_the_share_of_positions_with_the_same_most_likely_token() -> None:
    ft, other = two_models(57)
    texts = sample_texts(ft, 12, 20, seed=0)
    same = total = 0
    for text in texts:
        ids = torch.tensor([text])
        with torch.inference_mode():
            both = [m(input_ids=ids).logits[0, :-1].argmax(-1) for m in (ft, other)]
        same, total = same + int((both[0] == both[1]).sum()), total + len(text) - 1
    found = Fidelity(ft, texts).measure(other)["top1_agreement"]
    assert found.value == pytest.approx(same / total)
    assert 0 < found.value < 1
    assert found.stderr > 0


def test_texts_begin_with_bos_and_end_with_eos_or_at_their_length() -> None:
    ft, _ = two_models(57)
    texts = sample_texts(ft, 200, 12, seed=0)
    bos, eos = tokenizer().bos_token_id, tokenizer().eos_token_id
    assert {text[0] for text in texts} == {bos}
    assert max(len(text) for text in texts) == 13
    ended = [text for text in texts if len(text) < 13]
    assert ended
    assert all(text[-1] == eos for text in ended)
    assert all(eos not in text[:-1] for text in texts)


@pytest.mark.parametrize("bos", [None, 50_256])
def test_texts_without_bos_begin_with_an_ordinary_token(bos: int | None) -> None:
    model = initialized(lambda: llama(False), seed=5)
    model.config.bos_token_id = bos
    model.config.eos_token_id = [2, 3, 4]
    first = {text[0] for text in sample_texts(model, 2000, 2, seed=0)}
    assert first == set(range(len(tokenizer()))) - {0, 2, 3, 4}


def test_texts_are_drawn_at_temperature_1() -> None:
    model = initialized(lambda: llama(False), seed=5)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        bos = torch.tensor([[tokenizer().bos_token_id]])
        chances = model(input_ids=bos).logits[0, 0].softmax(-1)
    count = 20_000
    drawn = torch.tensor([text[1] for text in sample_texts(model, count, 1, seed=0)])
    seen = torch.bincount(drawn, minlength=len(chances)) / count
    error = (chances * (1 - chances) / count).sqrt()
    assert float(chances.max()) > 4 / len(chances)
    assert bool(((seen - chances).abs() < 4.5 * error + 1e-9).all())


def test_texts_depend_on_their_seed_alone() -> None:
    ft, _ = two_models(57)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = sample_texts(ft, 10, 12, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample_texts(ft, 10, 12, seed=3) == one
    assert sample_texts(ft, 10, 12, seed=4) != one


def test_sampling_in_several_batches_goes_on_with_the_same_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ft, _ = two_models(57)
    monkeypatch.setattr("deltalens.scoring.fidelity.LOGITS_BYTES", 16 * 57 * 4)
    texts = sample_texts(ft, 10, 12, seed=3)
    assert len(texts) == 10
    assert len({tuple(text) for text in texts}) == 10


def test_command_samples_64_texts_of_128_tokens(pair_of: PairOf, tmp_path: Path) -> None:
    pair, study = pair_of(family="llama"), tmp_path / "s"
    succeeds("drop-study", pair.ft, pair.base, "-o", study, "--rates", "0,1", "--seeds", "1", "-q")
    texts = read_texts(study)
    assert len(texts) == 64
    assert max(len(text) for text in texts) == 96, "the model has no more positions"
    assert FidelityTexts() == FidelityTexts(sequences=64, new_tokens=128, seed=0)
    frame = deltalens.load_study(study).cells
    assert set(frame["metric"]) == {"kl", "top1_agreement"}
    assert set(frame["n"]) == {64}


def classifier_without_padding() -> Any:
    head = transformers.GPT2ForSequenceClassification
    sizes = {"vocab_size": 57, "n_layer": 1, "n_positions": 32, "num_labels": 3}
    return tiny("gpt2", head=head, **sizes, pad_token_id=None)


def encoder_decoder() -> Any:
    config = transformers.T5Config(
        vocab_size=57, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    config.decoder_start_token_id = 0
    return transformers.T5ForConditionalGeneration(config)


def token_classifier() -> Any:
    return tiny(
        "bert",
        head=transformers.BertForTokenClassification,
        vocab_size=57,
        intermediate_size=16,
        num_hidden_layers=1,
        max_position_embeddings=32,
    )


@pytest.mark.parametrize("make", [classifier_without_padding, encoder_decoder, token_classifier])
def test_model_that_cannot_generate_is_compared_on_random_tokens_and_the_summary_says_so(
    make: Any, tmp_path: Path
) -> None:
    pair = save_pair(tmp_path, initialized(make, seed=5))
    found = drop_study(
        pair.ft, pair.base, tmp_path / "s", rates=["0.5"], strategies=["trivial"], fidelity=FEW
    )
    assert [note for note in found.facts["notes"] if "cannot generate" in note]
    texts = read_texts(tmp_path / "s")
    assert len(texts) == FEW.sequences
    assert {len(text) for text in texts} == {FEW.new_tokens}
    assert {token for text in texts for token in text} <= set(range(57))
    values = found.cells.set_index(["metric", "rate"])["value"]
    assert values["kl", 0.0] == 0
    assert 0 < values["kl", 0.5] < values["kl", 1.0]


def test_encoder_says_in_the_terminal_that_its_inputs_are_random(
    pair_of: PairOf, tmp_path: Path
) -> None:
    pair = pair_of(family="bert", tied=True)
    spec = ("--rates", "0.5", "--strategies", "trivial", "--fidelity-tokens", 4)
    said = succeeds("drop-study", pair.ft, pair.base, "-o", tmp_path / "s", *spec)
    assert "note: BertForMaskedLM cannot generate: fidelity is measured on random tokens" in said


def test_model_that_reads_the_text_anew_at_each_step_samples_the_same_texts() -> None:
    ft, _ = two_models(57)
    forward = ft.forward

    def without_cache(**inputs: Any) -> Any:
        out = forward(**{**inputs, "use_cache": False})
        return type("Out", (), {"logits": out.logits})()

    expected = sample_texts(ft, 6, 10, seed=0)
    ft.forward = without_cache
    assert sample_texts(ft, 6, 10, seed=0) == expected


def test_model_without_logits_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    config = token_classifier().config
    pair = save_pair(tmp_path, initialized(lambda: transformers.BertModel(config), seed=5))
    with pytest.raises(deltalens.DeltaLensError, match=r"BertModel returns no logits.*metric="):
        drop_study(pair.ft, pair.base, tmp_path / "s", fidelity=FEW)


def test_study_of_the_fine_tune_is_exact_at_rate_0_and_farthest_at_rate_1(
    pair_of: PairOf, tmp_path: Path
) -> None:
    pair = pair_of(family="qwen2", dtype=torch.bfloat16)
    spec: dict[str, Any] = {"rates": ["0.35"], "strategies": ["trivial"], "fidelity": FEW}
    frame = drop_study(pair.ft, pair.base, tmp_path / "s", **spec).cells
    values = frame.set_index(["metric", "rate"])["value"]
    assert values["kl", 0.0] == 0
    assert values["top1_agreement", 0.0] == 1
    assert 0 < values["kl", 0.35] < values["kl", 1.0]
    ft, base = plain(pair.ft), plain(pair.base)
    texts = read_texts(tmp_path / "s")
    assert values["kl", 1.0] == pytest.approx(
        Fidelity(ft, texts).measure(base)["kl"].value, rel=1e-6
    )


def memory_above_the_model(*arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.memory", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_fidelity_takes_at_most_1_gb_above_the_model_at_a_vocabulary_of_151936() -> None:
    # More positions than a batch may have here: in one batch they would take 1.1 GB.
    assert 10**8 < memory_above_the_model("float32", 64, 7) < 10**9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("texts", "tokens"), [(64, 16), (12, 128)])
def test_fidelity_of_full_size_takes_at_most_1_gb(dtype: str, texts: int, tokens: int) -> None:
    assert memory_above_the_model(dtype, texts, tokens) < 10**9
