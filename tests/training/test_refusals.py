"""What other libraries cannot do: layers that LoRA leaves out, and one line where nothing helps."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE
from deltalens.errors import DeltaLensError, errors_from
from deltalens.studies.efficiency import efficiency
from deltalens.training.lora import adapted
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.models import ids_of, save, tiny
from tests.support.specs import training_spec
from tests.support.training_folders import write_model

pytestmark = pytest.mark.bad_input

TOKENIZER = build_tokenizer(DEFAULT_RECIPE)
_WIDE: dict[str, Any] = {"hidden_size": 32}
_DEEP: dict[str, Any] = {
    **_WIDE,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 64},
    "mamba": {**_WIDE, "intermediate_size": 64, "time_step_rank": 4},
    "falcon-h1": _DEEP,
    "mixtral": {**_DEEP, "num_local_experts": 4},
    "qwen3-moe": _DEEP,
    "bert": {
        **_WIDE,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
}

FITTING = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "mamba": {"in_proj"},
    "falcon-h1": {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj", "in_proj"),
    },
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen3-moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
SAID = {
    "gpt2": "",
    "mamba": "x_proj, dt_proj, out_proj of state-space mixers",
    "falcon-h1": "out_proj of state-space mixers",
    "mixtral": "down_proj, gate_up_proj (fused experts",
    "qwen3-moe": "gate_proj (peft: ValueError: Cannot convert PEFT target(s) gate_proj",
}


def spec(**more: Any) -> TrainingSpec:
    given = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, **more}
    return training_spec(**given)


def make(architecture: str) -> Any:
    """A model, the same at every call."""
    torch.manual_seed(0)
    return tiny(architecture, **ids_of(TOKENIZER), **SETTINGS[architecture])


def folder(path: Path, model: Any) -> Path:
    return save(model, path, tokens=TOKENIZER)


@pytest.mark.parametrize("name", FITTING)
def test_lora_adapts_the_layers_that_fit_and_says_which_do_not(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made, notes = adapted(make(name), 2, 4, 0.1)
    parts = [one.partition(".lora_B.") for one, _ in made.named_parameters() if ".lora_B." in one]
    assert {before.rpartition(".")[2] for before, _, _ in parts} == FITTING[name]
    assert SAID[name] in " ".join(notes)
    assert bool(notes) == bool(SAID[name])


@pytest.mark.parametrize("name", FITTING)
def test_merged_adapters_compute_what_peft_computes(name: str) -> None:
    made, _ = adapted(make(name), 2, 4, 0.1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        ids = torch.randint(3, len(TOKENIZER), (2, 9), generator=generator)
        made.eval()
        before = make(name).eval()(input_ids=ids).logits
        wanted = made(input_ids=ids).logits
        got = made.merge_and_unload()(input_ids=ids).logits
    assert (wanted - before).abs().max() > 1e-2
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_mamba_is_trained_with_lora_and_the_record_says_where(rows: Path, tmp_path: Path) -> None:
    model = folder(tmp_path / "mamba", make("mamba"))
    done = train(model, rows, tmp_path / "out", spec(method="lora", lora_rank=2))
    before, after = (load_file(one / "model.safetensors") for one in (model, tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"backbone.layers.{block}.mixer.in_proj.weight" for block in (0, 1)}
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    assert record["facts"]["notes"] == list(done.notes)
    assert "LoRA adapts 2 layers (in_proj)" in done.notes[0]


def test_what_masks_leave_out_is_a_note(rows: Path, tmp_path: Path) -> None:
    model = folder(tmp_path / "mixtral", make("mixtral"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        done = train(model, rows, tmp_path / "out", spec(method="l1-mask"))
    assert "experts.gate_up_proj" in done.notes[0]


def small_vocabulary(path: Path) -> Path:
    """Its tokenizer has more tokens than the model has embeddings."""
    model = make("gpt2")
    model.resize_token_embeddings(4)
    return folder(path, model)


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "setting": ({"recipe": {"optim": "fastest"}}, "trl says: ValueError: fastest is not a valid"),
    "optimizer": ({"recipe": {"optim": "adamw_bnb_8bit"}}, "trl says: ImportError"),
    "arguments": ({"recipe": {"optim_args": "x"}}, "trl says: ValueError"),
    "schedule": (
        {"recipe": {"lr_scheduler_type": "polynomial"}, "learning_rate": 1e-8},
        "trl says",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_training_that_fails_before_its_first_step_leaves_nothing(
    rows: Path, tmp_path: Path, case: str
) -> None:
    given, message = FAILING[case]
    model = write_model(tmp_path / "model")
    with pytest.raises(DeltaLensError, match=message):
        train(model, rows, tmp_path / "new" / "out", spec(**given))
    assert not (tmp_path / "new").exists()
    train(model, rows, tmp_path / "new" / "out", spec())


BEYOND = "the tokenizer produces token 53, but the model has only 4"


@pytest.mark.parametrize("evaluated", [False, True])
def test_tokens_that_the_model_does_not_have(rows: Path, tmp_path: Path, evaluated: bool) -> None:
    model = small_vocabulary(tmp_path / "model")
    given = spec(method="l1-mask") if evaluated else spec()
    with pytest.raises(DeltaLensError, match=BEYOND):
        train(model, rows, tmp_path / "out", given, eval_data=[rows])
    assert not (tmp_path / "out").exists()
    with pytest.raises(DeltaLensError, match=BEYOND):
        efficiency(model, rows, tmp_path / "study", TrainingSpec(batch_size=4))
    assert not (tmp_path / "study").exists()


def test_one_line_and_exit_code_2(rows: Path, tmp_path: Path) -> None:
    model = small_vocabulary(tmp_path / "model")
    command = ["train", "sft", str(model), "--train-data", str(rows), "-o", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [*command, "-q"])
    assert said.exit_code == 2
    (line,) = [one for one in said.stderr.splitlines() if BEYOND in one]
    assert line.startswith("deltalens: ")
    debugged = CliRunner().invoke(app, [*command, "-q", "--debug"])
    assert debugged.exit_code == 2
    assert "Traceback" in debugged.stderr


def test_only_causal_language_models_are_trained(rows: Path, tmp_path: Path) -> None:
    model = folder(tmp_path / "bert", make("bert"))
    with pytest.raises(DeltaLensError, match="BertForMaskedLM is no causal language model"):
        train(model, rows, tmp_path / "out", spec())
    with pytest.raises(DeltaLensError, match="BertForMaskedLM is no causal language model"):
        efficiency(model, rows, tmp_path / "study", TrainingSpec())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "study").exists()


def test_a_bug_in_a_callback_stays_what_it_is(rows: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        train(
            write_model(tmp_path / "model"),
            rows,
            tmp_path / "out",
            spec(),
            watch=TrainingWatch(at=fail),
        )


def test_running_out_of_memory_is_said_wherever_it_happens() -> None:
    with (
        pytest.raises(DeltaLensError, match=r"cannot be: out of memory .*use smaller batches"),
        errors_from("torch", "this cannot be"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")


def test_how_a_model_generates_stays_the_checkpoints_own(rows: Path, tmp_path: Path) -> None:
    """Also where its file contradicts itself, which transformers does not write again."""
    model = write_model(tmp_path / "model")
    own = {"do_sample": False, "temperature": 0.5, "eos_token_id": [2, 3]}
    (model / "generation_config.json").write_text(json.dumps(own))
    train(model, rows, tmp_path / "out", spec(), checkpoint_every=1)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == own
