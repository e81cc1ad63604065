"""What a conversation's template is told, where an answer ends, and where generation stops."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast
from trl import extract_prompt

from deltalens.errors import DeltaLensError
from deltalens.scoring import file_scoring
from deltalens.scoring.fidelity import sample_texts
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.rows import DataFile, read_rows
from deltalens.scoring.tokens import encode_rows
from deltalens.scoring.turns import ends_of
from tests.support.tokenizers import CALL, CHATML, TOOLS, model, tokenizer, turns

PLAIN = "characters"


def read(tmp_path: Path, *rows: dict[str, Any]) -> DataFile:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows(file)


def with_template(template: str, **more: str | None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(PLAIN).backend_tokenizer,
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **more},
    )
    made.chat_template = template
    return made


def target(data: DataFile, encode: Any, made: Any = None) -> str:
    (one,), left_out = encode_rows(data, encode, None, made)
    assert left_out == 0
    return str(encode.decode(one.ids[one.target :]))


EVERY_MESSAGE = (
    "{% for m in messages %}{{ m | tojson }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}{{ tools | tojson }}{{ thinking }}"
)


def test_what_a_message_holds_goes_to_the_template_whole(tmp_path: Path) -> None:
    conversation = [
        {"role": "user", "content": "a?", "name": "ann", "anything": {"else": [1, None]}},
        {"role": "assistant", "content": None, "tool_calls": CALL, "reasoning_content": "it is"},
        {"role": "tool", "content": "7", "tool_call_id": "x"},
        {"role": "assistant", "content": "A0"},
    ]
    extra = {"tools": json.dumps(TOOLS), "chat_template_kwargs": {"thinking": "yes"}}
    made = with_template(EVERY_MESSAGE)
    (one,), _ = encode_rows(read(tmp_path, {"messages": conversation, **extra}), made, None)
    whole = made.apply_chat_template(conversation, tools=TOOLS, thinking="yes", tokenize=False)
    shown = made.decode(one.ids)
    assert whole.startswith(shown)
    for word in ("ann", "else", "arguments", "reasoning_content", "tool_call_id"):
        assert word in shown


def test_what_a_template_refuses_is_one_message_with_its_line(tmp_path: Path) -> None:
    made = with_template("{{ raise_exception('no system message here') }}")
    data = read(tmp_path, {"messages": turns("a", "b")})
    with pytest.raises(DeltaLensError, match=r"rows\.jsonl: line 1: .*no system message here"):
        encode_rows(data, made, None)


def test_parts_are_refused_where_a_template_would_show_a_list(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hello"}]
    data = read(tmp_path, {"messages": [{"role": "user", "content": parts}, *turns("", "b")[1:]]})
    with pytest.raises(DeltaLensError, match="line 1: the chat template does not support"):
        encode_rows(data, with_template(CHATML), None)
    knows = CHATML.replace("{{ m.content }}", "{{ m.content[0].text or m.content }}")
    assert "hello" in with_template(knows).decode(
        encode_rows(data, with_template(knows), None)[0][0].ids
    )


ENDINGS = {
    "a line break behind the turn": CHATML,
    "the end of the sequence behind the turn": CHATML + "{% if not add_generation_prompt %}</s>"
    "{% endif %}",
    "words behind the turn": CHATML.replace("<|im_end|>\n", "<|im_end|>\nover."),
}


@pytest.mark.parametrize("template", ENDINGS.values(), ids=ENDINGS)
def test_the_target_ends_with_the_turn(tmp_path: Path, template: str) -> None:
    data = read(tmp_path, {"messages": turns("what is it?", "A0, or \n")})
    assert target(data, with_template(template)) == "A0, or \n<|im_end|>"


def test_a_template_without_an_end_is_a_target_whole(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>\n", "{{ '\n' }}")
    data = read(tmp_path, {"messages": turns("what is it?", "A0")})
    assert target(data, with_template(template)) == "A0\n"


def test_a_template_that_refuses_the_probe_still_stops_where_the_model_does(
    tmp_path: Path,
) -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    made, built = with_template(template + CHATML.replace("\n{% endfor", "{% endfor")), model(PLAIN)
    built.generation_config.eos_token_id = [made.convert_tokens_to_ids("<|im_end|>")]
    rows = [{"role": "system", "content": "be"}, *turns("a", "A0")]
    data = read(tmp_path, {"messages": rows})
    assert target(data, made, built) == "A0<|im_end|>"


@pytest.mark.parametrize(
    ("configured", "eos", "template", "wanted"),
    [
        ([5], None, None, {"<|im_end|>"}),
        (5, "</s>", None, {"<|im_end|>", "</s>"}),
        (None, "</s>", CHATML, {"<|im_end|>", "</s>"}),
        (None, None, CHATML, {"<|im_end|>"}),
        ([4], "</s>", CHATML, {"<|im_start|>", "<|im_end|>", "</s>"}),
        (None, None, None, set()),
    ],
)
def test_generation_stops_at_all_that_ends_an_answer(
    configured: Any, eos: str | None, template: str | None, wanted: set[str]
) -> None:
    made, built = with_template(template or "", eos_token=eos), model(PLAIN)
    built.generation_config.eos_token_id = configured
    assert set(made.convert_ids_to_tokens(sorted(ends_of(made, built).stops))) == wanted


def knows(answer: str, made: Any) -> Any:
    """A model that has learned to say only this, and then to go on and on."""
    built = model(PLAIN)
    ids = torch.tensor([made(f"what?{answer}", add_special_tokens=False)["input_ids"]])
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    for _ in range(80):
        built(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return built


@pytest.mark.parametrize("known", ["the configuration", "the tokenizer", "the template"])
def test_an_answer_is_what_stands_before_the_stop(tmp_path: Path, known: str) -> None:
    """Whoever alone knows where to stop; and padding behind the stop is no text."""
    says = with_template("", eos_token=None, pad_token=None)
    built = knows(" 7<|im_end|> 5 5 5 5 5", says)
    built.generation_config = GenerationConfig()
    stop = says.convert_tokens_to_ids("<|im_end|>")
    if known == "the configuration":
        built.generation_config.eos_token_id = [stop]
    elif known == "the tokenizer":
        says.eos_token = "<|im_end|>"
    else:
        says.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    built.config.pad_token_id = says.convert_tokens_to_ids("9")
    rows = [{"prompt": "what?", "completion": " 7"}, {"prompt": "at?", "completion": " 70000000"}]
    out = built.generate(
        torch.tensor([says("what?", add_special_tokens=False)["input_ids"]]),
        generation_config=GenerationConfig(eos_token_id=stop, max_new_tokens=12, pad_token_id=0),
    )
    assert says.decode(out[0]) == "what? 7<|im_end|>"
    says.backend_tokenizer.post_processor = None
    scoring = Scoring(read(tmp_path, *rows), built, says, 4096, re.compile(r"\d+"))
    (short, _) = scoring.answers(built, scoring.sequences)
    assert says.decode(short) == " 7<|im_end|>"


def test_a_target_behind_a_stop_is_never_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if every argmax is the target's next token."""
    made, built = with_template(CHATML), model(PLAIN)
    data = read(tmp_path, {"prompt": turns("a"), "completion": turns("", "b", "c", "d")[1:]})
    scoring = Scoring(data, built, made, 4096)
    (one,) = scoring.sequences
    matching = (torch.zeros(1), torch.ones(1))
    monkeypatch.setattr(file_scoring, "score", lambda model, batch, match: matching)
    assert scoring.measure(built)["exact_match"].value == 0.0
    assert made.convert_tokens_to_ids("<|im_end|>") in one.ids[one.target : -1]


def test_texts_of_fidelity_stop_where_generation_does() -> None:
    built = model(PLAIN)
    with torch.no_grad():
        built.lm_head.weight[5] = 0
        built.lm_head.weight[5] += 40 * built.model.norm.weight
    built.generation_config.eos_token_id = [5]
    texts = sample_texts(built, 4, 12, 0, stops=ends_of(None, built).stops)
    assert all(5 not in text[1:-1] for text in texts)


PREFERENCES = [
    {"chosen": "what is it? A0", "rejected": "what is it? B1"},
    {"chosen": "what is it?A0", "rejected": "what is it?A1"},
    {"chosen": turns("a?", "A0"), "rejected": turns("a?", "B1")},
    {"chosen": turns("a?", "b", "c", "A0"), "rejected": turns("a?", "b", "c", "B1")},
    {
        "chosen": turns("a?", "b", "c", "A0"),
        "rejected": turns("a?", "b", "x", "B1"),
    },
]


@pytest.mark.parametrize("row", PREFERENCES)
def test_the_prompt_of_preferences_is_what_trl_takes(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read(tmp_path, row).rows
    wanted = extract_prompt(row)
    for mine, name in (
        (found.prompt, "prompt"),
        (found.completion, "chosen"),
        (found.rejected, "rejected"),
    ):
        assert (mine if isinstance(mine, str) else list(mine or ())) == wanted[name]


def test_a_prompt_that_the_answers_repeat_is_taken_from_them(tmp_path: Path) -> None:
    row = {"prompt": "a?", "chosen": turns("a?", "A0"), "rejected": turns("a?", "B1"), "score": 1}
    (found,) = read(tmp_path, row | {"messages": turns("a?", "A0")}).rows
    assert (found.prompt, found.completion, found.rejected) == (
        tuple(turns("a?")),
        tuple(turns("", "A0")[1:]),
        tuple(turns("", "B1")[1:]),
    )


def test_a_prompt_beside_messages_is_not_used(tmp_path: Path) -> None:
    row = {"prompt": "a?", "prompt_id": "x", "messages": turns("a?", "A0"), "text": "no"}
    assert read(tmp_path, row).rows[0].completion == tuple(turns("", "A0")[1:])


def test_rows_of_datasets_keep_their_keys() -> None:
    """What the tests give trl is what they say (a table gives every message all keys)."""
    assert Dataset.from_list([{"a": [{"x": 1}, {"y": 2}]}])[0]["a"][0] != {"x": 1}
