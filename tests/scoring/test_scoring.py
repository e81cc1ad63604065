"""Loss, perplexity and exact match: against slow twins that take one row at a time."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.scoring.file_scoring import Scoring, batch_positions
from deltalens.scoring.rows import read_rows
from tests.support.checkpoint_pairs import PairOf, plain, save_pair
from tests.support.models import initialized, llama, opt, tokenizer
from tests.support.runs import write_rows

pytestmark = pytest.mark.oracle

SUMS = [
    {"prompt": f"{name} {left}+{right}>", "completion": f"{left}+{right}={left + right}"}
    for name, left, right in (
        *(("ann", 1, 2), ("bob", 10, 5), ("eve", 7, 7), ("joe", 30, 12), ("kim", 4, 0)),
        *(("max", 21, 9), ("sue", 3, 3), ("tom", 8, 40)),
    )
]


def learned(make: Any, rows: list[dict[str, str]]) -> Any:
    """A model that was trained on these rows until it knows some by heart."""
    model, encode = initialized(lambda: make(False), seed=1).train(), tokenizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(90):
        for row in rows[:5]:
            prompt = encode(row["prompt"])["input_ids"]
            answer = encode(row["completion"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*prompt, *answer, encode.eos_token_id]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(llama, id="llama"),
        pytest.param(opt, id="opt", marks=pytest.mark.slow),
    ],
)
def model(request: pytest.FixtureRequest) -> Any:
    return learned(request.param, SUMS)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "sums.jsonl", SUMS)


def row_by_hand(model: Any, row: dict[str, str]) -> tuple[float, int]:
    """The summed loss of a completion's tokens and the end, and how many they are."""
    encode = tokenizer()
    prompt = encode(row["prompt"])["input_ids"]
    answer = encode(row["completion"], add_special_tokens=False)["input_ids"]
    ids = [*prompt, *answer, encode.eos_token_id]
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(len(prompt), len(ids))
    return -sum(float(logs[place - 1, ids[place]]) for place in places), len(places)


def greedy(model: Any, prompt: str, tokens: int = 30) -> str:
    """What plain greedy decoding answers, row by row."""
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    settings = GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    settings.eos_token_id = tokenizer().eos_token_id
    out = model.generate(ids, generation_config=settings)[0, ids.shape[1] :]
    return str(tokenizer().decode(out, skip_special_tokens=False))


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_loss_and_perplexity_are_those_of_one_row_at_a_time(
    model: Any, sums: Path, batch_tokens: int
) -> None:
    found = Scoring(read_rows(sums), model, tokenizer(), batch_tokens).measure(model)
    parts = [row_by_hand(model, row) for row in SUMS]
    total, count, n = sum(p[0] for p in parts), sum(p[1] for p in parts), len(parts)
    loss = total / count
    spread = sum((s - loss * c) ** 2 for s, c in parts) * n / (n - 1)
    assert found["loss"].value == pytest.approx(loss, rel=1e-4)
    assert found["loss"].stderr == pytest.approx(math.sqrt(spread) / count, rel=1e-3)
    assert found["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-3)
    assert found["perplexity"].stderr == pytest.approx(
        math.exp(loss) * found["loss"].stderr, rel=1e-3
    )
    assert {m.n for m in found.values()} == {n}


def test_exact_match_by_one_forward_is_what_greedy_decoding_answers(
    model: Any, tmp_path: Path
) -> None:
    by_forward, by_generation = [], []
    for place, row in enumerate(SUMS):
        file = write_rows(tmp_path / f"{place}.jsonl", [row])
        scoring = Scoring(read_rows(file), model, tokenizer(), 4096)
        by_forward.append(scoring.measure(model)["exact_match"].value)
        answered = greedy(model, row["prompt"], tokens=len(row["completion"]) + 1)
        by_generation.append(float(answered == row["completion"] + tokenizer().eos_token))
    assert by_forward == by_generation
    assert 0 < sum(by_forward) < len(SUMS), "the rows should be some right and some wrong"


def test_one_wrong_token_is_no_exact_match(model: Any, tmp_path: Path) -> None:
    row = next(
        row
        for row in SUMS
        if greedy(model, row["prompt"]) == row["completion"] + tokenizer().eos_token
    )
    answer = row["completion"]
    wrong = [answer[:place] + "x" + answer[place + 1 :] for place in range(len(answer))]
    rows = [{**row, "completion": text} for text in wrong]
    data = read_rows(write_rows(tmp_path / "wrong.jsonl", rows))
    assert Scoring(data, model, tokenizer(), 4096).measure(model)["exact_match"].value == 0


def test_exact_match_has_its_standard_error_over_rows(
    model: Any, sums: Path, tmp_path: Path
) -> None:
    single = [
        Scoring(read_rows(write_rows(tmp_path / "one.jsonl", [row])), model, tokenizer(), 99)
        .measure(model)["exact_match"]
        .value
        for row in SUMS
    ]
    found = Scoring(read_rows(sums), model, tokenizer(), 60).measure(model)["exact_match"]
    assert found.value == mean(single)
    assert found.stderr == pytest.approx(stdev(single) / math.sqrt(len(single)))


def answers(model: Any, pattern: str) -> float:
    wanted = [re.findall(pattern, row["completion"]) for row in SUMS]
    got = [re.findall(pattern, greedy(model, row["prompt"])) for row in SUMS]
    return mean(float(bool(w) and w[-1:] == g[-1:]) for w, g in zip(wanted, got, strict=True))


@pytest.mark.parametrize("penalty", [1.0, 5.0])
def test_answer_pattern_compares_what_it_finds_last_in_a_greedy_text(
    model: Any, sums: Path, penalty: float
) -> None:
    pattern = r"=(\d+)"
    expected = answers(model, pattern)
    assert 0 < expected < 1
    data, compiled = read_rows(sums), re.compile(pattern)
    model.generation_config.repetition_penalty = penalty
    try:
        found = Scoring(data, model, tokenizer(), 60, compiled).measure(model)
    finally:
        model.generation_config.repetition_penalty = None
    assert found["exact_match"].value == pytest.approx(expected)


def test_rows_of_text_are_scored_on_all_tokens_and_the_end_but_the_first(
    model: Any, tmp_path: Path
) -> None:
    texts = ["ann gets 3", "bob 4", "eve 12+3=15 finds"]
    file = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    found = Scoring(read_rows(file), model, tokenizer(), 4096).measure(model)
    total = count = 0.0
    for text in texts:
        ids = tokenizer()(text + tokenizer().eos_token, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert set(found) == {"loss", "perplexity"}
    assert found["loss"].value == pytest.approx(total / count, rel=1e-4)
    assert found["loss"].n == len(texts)


def with_template() -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    made.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + '>' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}a>{% endif %}"
    )
    return made


def test_conversation_is_scored_on_its_last_message(model: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "ann 1+2"}, {"role": "assistant", "content": "1+2=3"}]
    file = write_rows(tmp_path / "chat.jsonl", [{"messages": chat}])
    found = Scoring(read_rows(file), model, with_template(), 4096).measure(model)
    encode = tokenizer()
    prompt = encode("u>ann 1+2a>")["input_ids"]
    answer = [*encode("1+2=3", add_special_tokens=False)["input_ids"], encode.eos_token_id]
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    places = range(len(prompt), len(prompt) + len(answer))
    by_hand = -mean(float(logs[p - 1, (prompt + answer)[p]]) for p in places)
    assert found["loss"].value == pytest.approx(by_hand, rel=1e-4)
    assert found["exact_match"].n == 1


def test_conversation_without_a_template_is_an_error_that_names_the_way_out(
    model: Any, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "ann"}, {"role": "assistant", "content": "3"}]
    data = read_rows(write_rows(tmp_path / "chat.jsonl", [{"messages": chat}]))
    with pytest.raises(DeltaLensError, match=r"no chat template; use 'prompt' and 'completion'"):
        Scoring(data, model, tokenizer(), 4096)


def test_rows_too_long_for_the_model_are_left_out_and_counted(
    pair_of: PairOf, tmp_path: Path
) -> None:
    rows = [*SUMS, {"prompt": "ann " * 40, "completion": "3"}]
    pair, file = pair_of(family="llama"), write_rows(tmp_path / "sums.jsonl", rows)
    found = deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", data=[file], rates=["1"])
    note = "sums.jsonl: 1 rows left out: they are too long, or have no token to predict"
    assert note in found.facts["notes"]
    assert set(found.cells["n"]) == {len(SUMS)}


def test_encoder_with_data_is_an_error_that_says_what_to_do(
    pair_of: PairOf, sums: Path, tmp_path: Path
) -> None:
    pair = pair_of(family="bert", tied=True)
    with pytest.raises(DeltaLensError, match=r"BertForMaskedLM is not a causal.*measure its fid"):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", data=[sums])


@pytest.fixture(scope="module")
def study(
    pair_of: PairOf, tmp_path_factory: pytest.TempPathFactory
) -> tuple[deltalens.io.records.StudyRecord, list[int]]:
    """A study on two data files and fidelity, and how often a text was tokenized by each cell."""
    folder = tmp_path_factory.mktemp("study")
    files = [write_rows(folder / "sums.jsonl", SUMS)]
    files.append(write_rows(folder / "texts.jsonl", [{"text": row["completion"]} for row in SUMS]))
    calls, by_cell = 0, []
    original = PreTrainedTokenizerFast._encode_plus

    def counting(self: Any, *given: Any, **more: Any) -> Any:
        nonlocal calls
        texts = given[0] if given else more["text"]
        calls += len(texts) if isinstance(texts, list) else 1
        return original(self, *given, **more)

    from deltalens.studies.engine import StudyWatch

    pair = pair_of(family="gpt2", tied=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "_encode_plus", counting)
        record = deltalens.drop_study(
            *(pair.ft, pair.base, folder / "s"),
            data=files,
            rates=["0.5"],
            watch=StudyWatch(on_cell=lambda folder, cell: by_cell.append(calls)),
        )
    return record, by_cell


def test_nothing_is_tokenized_again_between_cells(study: Any) -> None:
    _, by_cell = study
    assert len(by_cell) == 5 * 3
    assert by_cell[0] >= 3 * len(SUMS)
    assert set(by_cell) == {by_cell[0]}


def test_metrics_of_several_files_carry_the_file_s_name(study: Any) -> None:
    record, _ = study
    assert list(dict.fromkeys(record.cells["metric"])) == [
        *("sums/exact_match", "sums/loss", "sums/perplexity"),
        *("texts/loss", "texts/perplexity"),
    ]


def test_rate_0_scores_as_the_fine_tune_and_rate_1_as_the_base(
    study: Any, pair_of: PairOf, tmp_path: Path
) -> None:
    record, _ = study
    values = record.cells.set_index(["metric", "strategy", "seed", "rate"])["value"]
    pair, data = pair_of(family="gpt2", tied=True), tmp_path / "sums.jsonl"
    write_rows(data, SUMS)
    for rate, folder in ((0.0, pair.ft), (1.0, pair.base)):
        model = plain(folder)
        alone = Scoring(read_rows(data), model, tokenizer(), 4096).measure(model)["loss"].value
        for strategy, seed in (("salient", 0), ("trivial", 0), ("random", 0), ("random", 2)):
            assert values["sums/loss", strategy, seed, rate] == alone


def test_metrics_asked_for_by_name_are_the_only_ones(
    pair_of: PairOf, sums: Path, tmp_path: Path
) -> None:
    pair = pair_of(family="llama")
    other = write_rows(tmp_path / "texts.jsonl", [{"text": "ann"}])
    found = deltalens.drop_study(
        *(pair.ft, pair.base, tmp_path / "s"),
        data=[sums, other],
        rates=["1"],
        strategies=["trivial"],
        metrics=["sums/loss", "perplexity"],
    )
    assert set(found.cells["metric"]) == {"sums/loss", "sums/perplexity", "texts/perplexity"}
    with pytest.raises(DeltaLensError, match=r"metric 'accuracy' cannot be measured here; choose"):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "t", data=[sums], metrics=["accuracy"])


def test_data_files_of_one_name_are_refused(pair_of: PairOf, sums: Path, tmp_path: Path) -> None:
    pair = pair_of(family="llama")
    (tmp_path / "b").mkdir()
    other = write_rows(tmp_path / "b" / "sums.jsonl", SUMS[:2])
    with pytest.raises(DeltaLensError, match="data files with the same name"):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", data=[sums, other])


def test_limit_takes_the_first_rows(pair_of: PairOf, sums: Path, tmp_path: Path) -> None:
    pair = pair_of(family="llama")
    spec: dict[str, Any] = {"rates": ["1"], "strategies": ["trivial"]}
    found = deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", data=[sums], limit=3, **spec)
    assert set(found.cells["n"]) == {3}


def test_of_changed_counts_and_drops_only_entries_that_changed(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, initialized(lambda: llama(False), seed=1))
    seen: list[int] = []
    ft = {name: tensor.clone() for name, tensor in plain(pair.ft).state_dict().items()}
    base = plain(pair.base).state_dict()
    changed = sum(int((ft[name] != base[name]).sum()) for name in ft)

    def metric(model: Any) -> dict[str, float]:
        state = model.state_dict()
        seen.append(sum(int((state[name] != ft[name]).sum()) for name in ft))
        return {"put back": seen[-1]}

    found = deltalens.drop_study(
        *(pair.ft, pair.base, tmp_path / "s"),
        rates=["0.25"],
        strategies=["random"],
        seeds=1,
        changed_only=True,
        scope="global",
        metric=metric,
    )
    assert seen == [0, round(0.25 * changed), changed]
    assert found.facts["entries"] - found.facts["unchanged"] == changed


def test_batches_shrink_with_the_vocabulary() -> None:
    assert batch_positions(4096, 1000) == 4096
    assert batch_positions(4096, 151_936) * 151_936 * 4 <= 1 << 28
    assert batch_positions(4096, 1 << 40) == 1


def test_custom_metric_is_all_that_is_measured_and_gets_a_model_in_evaluation_mode(
    pair_of: PairOf, tmp_path: Path
) -> None:
    pair, modes = pair_of(family="qwen2"), []

    def metric(model: Any) -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"largest": float(model.lm_head.weight.abs().max()), "nothing": math.nan}

    found = deltalens.drop_study(
        pair.ft, pair.base, tmp_path / "s", metric=metric, rates=["0.5"], strategies=["trivial"]
    )
    assert set(modes) == {(False, False)}
    values = found.cells.set_index(["metric", "rate"])["value"]
    for rate, folder in ((0.0, pair.ft), (1.0, pair.base)):
        assert values["largest", rate] == plain(folder).lm_head.weight.abs().max().item()
    assert math.isnan(values["nothing", 0.5])
    assert not (tmp_path / "s" / "texts.json").exists()
    line = json.loads((tmp_path / "s" / "cells.jsonl").read_text().splitlines()[0])
    assert line["metrics"]["nothing"] == ["nan", "nan", 0]
