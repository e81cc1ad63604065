"""A folder with one of everything that deltalens reads, small and sound; the same at every build.

Names in it are relative, so that the records hold no path of this machine, and a mutant with a
number is the same mutant tomorrow.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.studies.training_plans import TrainingData
from tests.support.mutate.damage import OUTSIDE
from tests.support.specs import run_study, study_spec, training_spec

if TYPE_CHECKING:
    from deltalens.training.run import Trained

CELLS = "answers.jsonl"
"""The rows that studies measure and learn."""
STEPS = 4
BEFORE = Path(__file__).parents[1] / "before"
"""Studies of the first version, whose records have no checksums."""
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)
RECIPE = """\
# Of trl's options.
optim: adamw_torch
adam_beta2: 0.95
max_grad_norm: 1.0
lr_scheduler_type: cosine
loss_type: nll
logging_first_step: true
"""


def build(root: Path) -> None:
    """Fill an empty folder. Takes some seconds; changes into it for as long."""
    import torch

    import deltalens  # noqa: F401

    torch.set_num_threads(1)
    with inside(root), steady_clock():
        Path(OUTSIDE).write_text("not yours\n")
        write_models()
        write_rows()
        Path("recipe.yaml").write_text(RECIPE)
        write_adapter()
        write_sparse_adapters()
        write_masks()
        write_run()
        write_trainings()
        for kind, study in STUDIES.items():
            study(Path("studies", kind))
        shutil.copytree(BEFORE, "older")


@contextmanager
def inside(root: Path) -> Iterator[None]:
    """In a folder, and back."""
    before = os.getcwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def steady_clock() -> Iterator[None]:
    """Every cell takes a quarter of a second, for the journal: bytes that do not differ."""
    from deltalens.io.records import StudyFolder

    extend = StudyFolder.extend

    def steadily(self: StudyFolder, cells: Any) -> None:
        extend(self, [replace(cell, seconds=0.25) for cell in cells])

    StudyFolder.extend = steadily  # type: ignore[method-assign]
    try:
        yield
    finally:
        StudyFolder.extend = extend  # type: ignore[method-assign]


def write_models() -> None:
    """`base` in one file, `ft` in shards, `other` as a third point; a tokenizer beside each."""
    import torch

    from deltalens.demo.model import build_tokenizer
    from deltalens.demo.recipe import Recipe
    from tests.support.models import ids_of, save, tiny

    tokenizer = build_tokenizer(Recipe(positions=64))
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = tiny(
            "llama",
            **ids_of(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        for name, shard in (("base", "1GB"), ("ft", "4KB"), ("other", "1GB")):
            save(model, Path(name), shard, tokenizer)
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))


def write_rows() -> None:
    """Rows of every form, in every kind of file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = Path("rows")
    rows.mkdir()
    answers = [{"prompt": f"{n}+{n % 3}=", "completion": str(n + n % 3)} for n in range(1, 13)]
    say = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
    talks = [{"messages": list(say) * (1 + n % 2)} for n in range(4)]
    forms = {
        "answers": answers,
        "texts": [{"text": "once upon a time"}, {"text": "there was"}, {"text": "an end"}],
        "talks": talks,
        "preferences": [{"prompt": "1+1=", "chosen": str(n), "rejected": "x"} for n in range(1, 5)],
    }
    for name, held in forms.items():
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    tools = [{**talk, "tools": [{"name": {"of": "it"}}]} for talk in talks] * 8
    lines = "".join(json.dumps(row) + "\n" for row in tools)
    (rows / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (rows / "array.json").write_text(json.dumps(answers))
    table = pa.Table.from_pylist(tools)
    pq.write_table(table, rows / "table.parquet")
    saved = rows / "saved"
    saved.mkdir()
    (saved / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "rows.arrow"}], "_format_columns": None})
    )
    with (
        pa.OSFile(str(saved / "rows.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as to,
    ):
        to.write_table(table)


def write_adapter() -> None:
    """A LoRA adapter on the base."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("base", local_files_only=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape))
    adapted.save_pretrained("adapter")


def write_sparse_adapters() -> None:
    """Trained entries of the base, whose masks were renewed: a file of ours, and peft's SHiRA."""
    import torch
    from transformers import AutoModelForCausalLM

    from deltalens import SparseTuning

    model = AutoModelForCausalLM.from_pretrained("base", local_files_only=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        tuning = SparseTuning(model, 0.1, metric="random", scope="tensor", targets=["q_proj"])
        for _ in range(2):
            tuning.refresh()
            for values in tuning.parameters():
                values.copy_(torch.randn(values.shape))
        tuning.save("sparse.safetensors")
        tuning.save("shira", format="shira")


def write_masks() -> None:
    """Masks of the fine-tune's weights."""
    from transformers import AutoModelForCausalLM

    from deltalens.methods.weight_masks import l1_weight_mask

    l1_weight_mask(AutoModelForCausalLM.from_pretrained("ft", local_files_only=True)).save(
        "masks.safetensors"
    )


def write_run() -> None:
    """What a probe logs of three steps, in several parts."""
    import torch
    from transformers import AutoModelForCausalLM

    import deltalens

    model = AutoModelForCausalLM.from_pretrained("base", local_files_only=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with deltalens.GradientProbe(model, "run", every=1, updates=True):
        for step in range(3):
            ids = torch.arange(4, 12 + step).unsqueeze(0)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


SHARED: dict[str, Any] = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2}
"""What all trainings have: a few steps."""


def training(out: Path, resume: bool = False, stop: int | None = None) -> Trained:
    """The training that `training` holds the first half of."""
    from deltalens.training.run import TrainingWatch, train

    def at(done: int, total: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGINT)

    return train(
        "base",
        f"rows/{CELLS}",
        out,
        training_spec(**SHARED),
        eval_data=["rows/texts.jsonl"],
        choose_on="rows/answers.jsonl",
        eval_every=1,
        checkpoint_every=1,
        resume=resume,
        watch=TrainingWatch(at=at),
    )


def write_trainings() -> None:
    """One stopped half-way, the same to its end, and one whose removed shares are drawn."""
    from deltalens.training.run import train

    training(Path("training"), stop=STEPS - 1)
    training(Path("trained"))
    train("base", f"rows/{CELLS}", "removed", training_spec("mft", threshold=-0.02, **SHARED))


def source(**more: Any) -> TrainingData:
    """What the studies of trainings start from."""
    given = {"model": "ft", "data": f"rows/{CELLS}", "eval_data": [f"rows/{CELLS}"], **more}
    return TrainingData(**given)


def drop_study_on_texts(out: Path) -> None:
    """Without data: fidelity on texts of its own."""
    from deltalens.scoring.texts import FidelityTexts
    from tests.support.studies import drop_study

    few = FidelityTexts(sequences=3, new_tokens=4)
    drop_study("ft", "base", out, rates="0.5", seeds=1, fidelity=few)


def drop_study_on_data(out: Path) -> None:
    """With rows, messages among them: the chat template counts."""
    import deltalens

    data = ["rows/answers.jsonl", "rows/talks.jsonl"]
    deltalens.drop_study("ft", "base", out, rates="0.5", strategies=["trivial"], data=data)


def inspection(out: Path) -> None:
    """No model is loaded."""
    import deltalens

    deltalens.inspect("ft", "base", out)


def landscape(out: Path) -> None:
    """A line from the base through the fine-tune."""
    import deltalens

    deltalens.scan_landscape("ft", out, others=["base"], grid=3, data=[f"rows/{CELLS}"])


def plane(out: Path) -> None:
    """Through three models."""
    import deltalens

    deltalens.scan_landscape(
        "ft", out, others=["base", "other"], grid="3x3", data=[f"rows/{CELLS}"]
    )


def layers_drop(out: Path) -> None:
    """Each block's delta put back, or kept alone."""
    from tests.support.studies import sweep_layers_drop

    sweep_layers_drop("ft", "base", out, groups=[1], data=[f"rows/{CELLS}"])


def layers_mft(out: Path) -> None:
    """Each block masked."""
    from deltalens.studies.mft_sweeps import sweep_layers

    axes = {"group_sizes": [1], "seeds": 1}
    run_study(sweep_layers, "random-mask-weights", source(), out, SHARED, **axes)


def mask_ratios(out: Path) -> None:
    """Of masked gradients."""
    from deltalens.studies.mask_ratio import sweep_mask_ratio

    axes = {"mask_ratios": "0.5", "seeds": 1}
    run_study(sweep_mask_ratio, ["sft", "gmt"], source(), out, SHARED, **axes)


def data_ratios(out: Path) -> None:
    """Of masked weights."""
    from deltalens.studies.mft_sweeps import sweep_data_ratio

    axes = {"data_ratios": "0.5", "seeds": 1}
    run_study(sweep_data_ratio, ["mft", "sft"], source(), out, SHARED, **axes)


def comparison(out: Path) -> None:
    """Of what a fine-tune can be made of."""
    from deltalens.studies.mft_sweeps import compare

    methods = ["base", "ft", "sft", "l1-mask"]
    run_study(compare, methods, source(eval_every=2), out, SHARED, base="base", seeds=1)


def efficiency(out: Path) -> None:
    """Timings: not the same at every build, but made of as many digits."""
    from deltalens.studies.efficiency import efficiency

    methods, spec = study_spec(["sft", "gmt"], **SHARED)
    efficiency("ft", f"rows/{CELLS}", out, spec, methods=methods, repeats=1, steps=1)


def evaluation(out: Path) -> None:
    """Of two models, and of what a training came to."""
    import deltalens

    deltalens.evaluate(["base", "ft", "trained"], out, data=f"rows/{CELLS}")


def salience(out: Path) -> None:
    """Masks, and files of them: some metrics of two batches, and a fine-tune."""
    import deltalens

    given: dict[str, Any] = {"metrics": "gradient,magnitude", "density": "0.1", "batch_size": 4}
    deltalens.salience_study("base", f"rows/{CELLS}", out, against="ft", steps=2, **given)


STUDIES: dict[str, Callable[[Path], None]] = {
    "drop-study": drop_study_on_texts,
    "drop-study-on-data": drop_study_on_data,
    "inspect": inspection,
    "landscape": landscape,
    "plane": plane,
    "layer-sweep": layers_drop,
    "layer-sweep-mft": layers_mft,
    "mask-ratio-sweep": mask_ratios,
    "data-ratio-sweep": data_ratios,
    "comparison": comparison,
    "efficiency": efficiency,
    "evaluate": evaluation,
    "salience": salience,
}
"""What makes each study; called again, it goes on with it."""
