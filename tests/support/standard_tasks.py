"""Tasks of the lm-evaluation-harness in local files, and a pair of models that solves some."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoint_pairs import Pair
from tests.support.models import save
from tests.support.tokenizers import model, tokenizer

KIND = "byte-level BPE"
LEARNED = "Answer: so it is\n#### 7\n\nQuestion: ann has eggs. how many?\n" * 4
"""What the fine-tune continues: it answers 7, in GSM8K's form."""


def write_pair(folder: Path, positions: int = 2048) -> Pair:
    """A Llama whose tokens are bytes, and a fine-tune that always answers 7."""
    pair, tokens = Pair(folder / "ft", folder / "base"), tokenizer(KIND)
    made = model(KIND, max_position_embeddings=positions)
    save(made, pair.base, tokens=tokens)
    ids = tokens(LEARNED, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    made.train()
    for _ in range(60):
        made(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(made.eval(), pair.ft, tokens=tokens)
    return pair


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def gsm8k_rows(count: int) -> list[dict[str, str]]:
    """Every other answer is 7; the others are 3."""
    return [
        {
            "question": f"ann has {n} eggs and gets {n % 3}. how many?",
            "answer": f"so it is\n#### {7 if n % 2 else 3}",
        }
        for n in range(count)
    ]


def mbpp_rows(count: int) -> list[dict[str, Any]]:
    """Tasks that no tiny model solves."""
    return [
        {
            "task_id": n,
            "text": f"Add {n} to a number.",
            "code": f"def add(x):\n    return x + {n}",
            "test_list": [f"assert add({x}) == {x + n}" for x in range(3)],
        }
        for n in range(count)
    ]


TASKS: dict[str, str] = {
    "choice": """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: ["so it is", "it is 3", "no"]
doc_to_target: "{{label}}"
num_fewshot: 1
metadata: {version: 2.0}
""",
    "likelihood": """
task: likelihood
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "rolling": """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}} {{answer}}"
""",
    "sampled": """
task: sampled
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "Answer:"
doc_to_target: "{{answer}}"
metric_list: [{metric: chrf}]
generation_kwargs: {until: ["Question:"], do_sample: true, temperature: 1.5, max_gen_toks: 12}
""",
    "both": """
group: both
task: [choice, likelihood]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
""",
}
"""One task of each kind of request, and a group."""


def write_tasks(folder: Path, count: int = 8) -> Path:
    """The files of `TASKS` and their rows."""
    folder.mkdir()
    rows = [{**row, "label": n % 3} for n, row in enumerate(gsm8k_rows(count))]
    write_rows(folder / "rows.jsonl", rows)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return folder


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose requests the harness builds from here to the end of the test."""
    from lm_eval.api.task import Task

    built: list[str] = []
    build = Task.build_all_requests

    def counted(self: Any, **options: Any) -> None:
        built.append(self.config.task)
        build(self, **options)

    monkeypatch.setattr(Task, "build_all_requests", counted)
    return built
