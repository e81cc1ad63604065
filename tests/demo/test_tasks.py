"""The demo's rows are right, its held-out rows stay out of training, and its folder is robust."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens.demo import DemoPaths, Recipe, build_demo
from deltalens.demo.build import TRAINING_ROWS
from deltalens.demo.model import build_model, build_tokenizer
from deltalens.demo.tasks import DOMAINS, PIECES, Row, held_out_prompts, hold_out, stream
from deltalens.demo.train import encode, exact_match, train
from deltalens.errors import DeltaLensError
from deltalens.scoring.rows import read_rows

TINY = Recipe(
    hidden_size=16,
    intermediate_size=16,
    blocks=1,
    heads=2,
    batch_size=4,
    base_steps=3,
    finetune_steps=2,
    validation_rows=5,
    test_rows=7,
)


def rows_of(task: str, count: int = 300) -> list[Row]:
    rng = Random(11)
    return [({**DOMAINS, **PIECES})[task](rng) for _ in range(count)]


def expected_chain(start: str, signed_amounts: list[str]) -> str:
    """Evaluate every prefix of the sum from scratch, with Python's own arithmetic."""
    steps = [
        f"{amount}={eval(start + ''.join(signed_amounts[: index + 1]))}"
        for index, amount in enumerate(signed_amounts)
    ]
    return start + "".join(steps)


CALLS: dict[str, Callable[[list[int]], list[int]]] = {
    "rev": lambda digits: list(reversed(digits)),
    "sort": sorted,
    "inc": lambda digits: [0 if digit == 9 else digit + 1 for digit in digits],
    "rot": lambda digits: [*digits[1:], digits[0]],
}


@pytest.mark.parametrize("task", ["maths", "one_event"])
def test_a_story_is_answered_by_its_running_sum(task: str) -> None:
    for prompt, completion in rows_of(task):
        _, start, *events = prompt.removesuffix(">").split(" ")
        signs = ["+" if verb in ("gets", "finds") else "-" for verb in events[::2]]
        amounts = [f"{sign}{amount}" for sign, amount in zip(signs, events[1::2], strict=True)]
        assert completion == expected_chain(start, amounts)


def test_code_is_answered_by_the_inner_call_and_then_the_outer() -> None:
    for prompt, completion in rows_of("code"):
        outer, inner, digits = re.fullmatch(r"(\w+)\((\w+)\((\d+)\)\)>", prompt).groups()  # type: ignore[union-attr]
        between = CALLS[inner]([int(digit) for digit in digits])
        after = CALLS[outer](between)
        assert completion == ",".join("".join(map(str, part)) for part in (between, after))


def test_instructions_are_followed_from_left_to_right() -> None:
    for prompt, completion in rows_of("instructions"):
        ordering, finishing, word = prompt.removesuffix(">").split(" ")
        between = "".join(reversed(word) if ordering == "reverse" else sorted(word))
        after = {
            "upper": between.upper(),
            "double": re.sub(r"(.)", r"\1\1", between),
            "first": between[:1],
            "last": between[-1:],
        }[finishing]
        assert completion == f"{between},{after}"


def test_every_prompt_ends_in_its_mark_and_has_no_other() -> None:
    for task in {**DOMAINS, **PIECES}:
        for prompt, completion in rows_of(task):
            assert prompt.index(">") == len(prompt) - 1
            assert ">" not in completion


def test_validation_and_test_share_no_prompt() -> None:
    for validation, test in hold_out(0, validation_rows=200, test_rows=300).values():
        assert len({row.prompt for row in (*validation, *test)}) == 500


def test_held_out_rows_are_fixed_by_the_seed() -> None:
    assert hold_out(3, validation_rows=9, test_rows=9) == hold_out(
        3, validation_rows=9, test_rows=9
    )
    assert hold_out(3, validation_rows=9, test_rows=9) != hold_out(
        4, validation_rows=9, test_rows=9
    )


@pytest.mark.parametrize(
    "weights", [*({domain: 1.0} for domain in DOMAINS), Recipe(domain_weight=1.0).base_mixture()]
)
def test_no_held_out_prompt_occurs_in_a_training_stream(weights: dict[str, float]) -> None:
    held_out = held_out_prompts(hold_out(0, validation_rows=200, test_rows=3000))
    rows = islice(stream(weights, Random(1), rejected=held_out), 5000)
    assert not held_out & {row.prompt for row in rows}


def test_a_training_stream_without_rejection_would_meet_held_out_prompts() -> None:
    held_out = held_out_prompts(hold_out(0, validation_rows=200, test_rows=3000))
    for domain in DOMAINS:
        rows = islice(stream({domain: 1.0}, Random(1), rejected=frozenset()), 5000)
        assert held_out & {row.prompt for row in rows}


def test_a_stream_with_nothing_left_to_give_says_what_to_change() -> None:
    every_prompt = {f"count {start}>" for start in range(100)}
    with pytest.raises(DeltaLensError, match="fewer validation_rows and test_rows"):
        next(stream({"counting": 1.0}, Random(0), rejected=every_prompt))


def test_a_recipe_names_all_its_faults() -> None:
    with pytest.raises(DeltaLensError, match=r"(?s)blocks.*sums_weight"):
        Recipe(blocks=0, sums_weight=-1.0)


def test_every_field_of_a_recipe_changes_its_fingerprint() -> None:
    changed = {Recipe(seed=1).fingerprint(), Recipe(blocks=2).fingerprint(), Recipe().fingerprint()}
    assert len(changed) == 3
    assert Recipe().fingerprint() == Recipe(seed=0).fingerprint()


def test_the_saved_tokenizer_round_trips_every_row(tmp_path: Path) -> None:
    build_tokenizer(TINY).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for task in {**DOMAINS, **PIECES}:
        for prompt, completion in rows_of(task):
            ids = tokenizer(prompt + completion)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + completion


def test_a_training_row_is_prompt_completion_and_eos() -> None:
    tokenizer = build_tokenizer(TINY)
    rows = rows_of("maths", 20)
    batch = encode(rows, tokenizer)
    for row, tokens, is_target in zip(rows, batch.tokens_BT, batch.is_target_BT, strict=True):
        prompt = tokenizer(row.prompt)["input_ids"]
        answer = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        assert tokens[: len(prompt) + len(answer)].tolist() == prompt + answer
        assert set(tokens[len(prompt) + len(answer) :].tolist()) <= {tokenizer.pad_token_id}
        assert tokens[is_target].tolist() == answer


def test_exact_match_is_what_greedy_decoding_would_give() -> None:
    recipe = replace(TINY, hidden_size=32, intermediate_size=64)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    learned = [Row("count 5>", "5,6,7,8"), Row("26+2>", "28")]
    train(
        model,
        tokenizer,
        cycle(learned),
        steps=60,
        batch_size=2,
        learning_rate=2e-2,
        progress=lambda done, total: None,
    )
    wrong_inside, wrong_end = Row("count 5>", "5,6,6,8"), Row("26+2>", "282")
    rows = [*learned, wrong_inside, wrong_end]
    decoded = []
    for row in rows:
        prompt = tokenizer(row.prompt, return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]  # type: ignore[misc]
        decoded.append(tokenizer.decode(answer[prompt["input_ids"].shape[1] :]))
    matches = [text == f"{row.completion}</s>" for text, row in zip(decoded, rows, strict=True)]
    assert matches == [True, True, False, False]
    assert exact_match(model, tokenizer, rows) == 0.5


class Reports:
    """Notes what is reported, and stops the build when asked to."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.stop_in = stop_in
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))
        if stage == self.stop_in:
            raise KeyboardInterrupt

    def stages(self) -> set[str]:
        return {stage for stage, _, _ in self.calls}


ROWS = ("train.jsonl", "test.jsonl")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    return build_demo(tmp_path_factory.mktemp("demo"), recipe=TINY)


def test_a_demo_is_two_checkpoints_that_transformers_loads(demo: DemoPaths) -> None:
    for folder in (demo.base, demo.ft):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert len(tokenizer) == model.config.vocab_size
    assert names_in(demo.folder) == {"base", "ft", "data", "demo.json", *ROWS}


def test_the_finetune_differs_from_the_base_in_every_tensor(demo: DemoPaths) -> None:
    base, ft = (load_file(folder / "model.safetensors") for folder in (demo.base, demo.ft))
    assert base.keys() == ft.keys()
    assert not [name for name in base if torch.equal(base[name], ft[name])]


def test_a_demo_writes_its_held_out_rows(demo: DemoPaths) -> None:
    held_out = hold_out(TINY.seed, validation_rows=5, test_rows=7)
    for domain, files in demo.data.items():
        for split, path in files.items():
            rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
            assert tuple(rows) == getattr(held_out[domain], split)


def test_a_demo_writes_rows_to_train_on_that_none_of_the_held_out_ones_is_among(
    demo: DemoPaths,
) -> None:
    training, test = (read_rows(demo.folder / name).rows for name in ROWS)
    held_out = hold_out(TINY.seed, validation_rows=5, test_rows=7)["maths"]
    assert {row.prompt for row in test} == {row.prompt for row in held_out.test}
    assert len(training) == TRAINING_ROWS
    assert not {row.prompt for row in training} & held_out_prompts({"maths": held_out})


def test_a_demo_of_before_gets_its_rows_without_training(demo: DemoPaths) -> None:
    before, reports = demo.train.read_bytes(), Reports()
    demo.train.unlink()
    build_demo(demo.folder, recipe=TINY, report=reports)
    assert demo.train.read_bytes() == before
    assert not reports.calls


def test_a_demo_records_how_it_was_made(demo: DemoPaths) -> None:
    record = json.loads((demo.folder / "demo.json").read_text())
    assert record["fingerprint"] == TINY.fingerprint()
    assert record["recipe"] == asdict(TINY)
    assert [stage["steps"] for stage in record["stages"].values()] == [3, 2]


def test_a_finished_demo_is_not_trained_again(demo: DemoPaths) -> None:
    reports = Reports()
    assert build_demo(demo.folder, recipe=TINY, report=reports) == demo
    assert not reports.calls


def test_another_recipe_makes_the_demo_anew(tmp_path: Path) -> None:
    build_demo(tmp_path, recipe=TINY)
    reports = Reports()
    build_demo(tmp_path, recipe=replace(TINY, seed=1), report=reports)
    assert reports.stages() == {"base", "ft"}
    assert names_in(tmp_path) == {"base", "ft", "data", "demo.json", *ROWS}


def test_an_interrupted_demo_resumes_to_the_same_weights(tmp_path: Path, demo: DemoPaths) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path, recipe=TINY, report=Reports(stop_in="ft"))
    assert names_in(tmp_path) == {"base", "data", *ROWS}
    reports = Reports()
    resumed = build_demo(tmp_path, recipe=TINY, report=reports)
    assert reports.stages() == {"ft"}
    for part in ("base", "ft"):
        file = f"{part}/model.safetensors"
        assert (resumed.folder / file).read_bytes() == (demo.folder / file).read_bytes()


def test_a_demo_keeps_off_checkpoints_that_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(DeltaLensError, match="was not written by a demo"):
        build_demo(tmp_path, recipe=TINY)
    assert names_in(tmp_path) == {"base"}


def test_a_demo_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_model(TINY, build_tokenizer(TINY))
    assert torch.equal(torch.get_rng_state(), before)
    build_demo(tmp_path, recipe=TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_the_demo_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, deltalens.demo, deltalens.demo.build\n"
        "print(*sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
