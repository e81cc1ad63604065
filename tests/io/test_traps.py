"""Checkpoints that would run code where they are loaded: none of it runs unasked, a "y" on standard
input or not, and what cannot be loaded without it is refused in one line."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from deltalens.cli.main import app
from deltalens.io.pretrained import empty_model
from tests.support.checkpoint_files import SINGLE, save_llama_pair

pytestmark = pytest.mark.bad_input

PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "vocab.pkl", "model.pt")
LOADING = {
    "drop-study": "drop-study {ft} {base} -o {out} --data {rows} --rates 0.5 --strategies trivial",
    "sweep layers-drop": "sweep layers-drop {ft} {base} -o {out} --data {rows}",
    "landscape": "landscape {ft} {base} -o {out} --data {rows}",
    "evaluate": "evaluate {ft} {base} -o {out} --data {rows}",
    "salience": "salience {ft} -o {out} --data {rows} --batch-size 2 --density 0.1",
    "sweep mask-ratio": "sweep mask-ratio gmt {ft} -o {out} --train-data {rows} --eval-data {rows} "
    "--steps 1 --mask-ratios 0.1 --seeds 1",
    "sweep data-ratio": "sweep data-ratio mft {ft} -o {out} --train-data {rows} --eval-data {rows} "
    "--steps 1 --data-ratios 0.5 --seeds 1",
    "sweep layers": "sweep layers mft {ft} -o {out} --train-data {rows} --eval-data {rows} "
    "--steps 1 --seeds 1 --group-sizes 1",
    "compare": "compare sft {ft} -o {out} --train-data {rows} --eval-data {rows} "
    "--steps 1 --seeds 1",
    "efficiency": "efficiency gmt {ft} -o {out} --train-data {rows} --batch-size 2",
} | {
    f"train {method}": f"train {method} {{ft}} -o {{out}} --train-data {{rows}} --steps 1"
    for method in ("sft", "gmt", "random-mask", "hft", "mft", "random-mask-weights", "lora")
}
LOADING["train sft, dpo"] = (
    "train sft {ft} -o {out} --train-data {preferences} --steps 1 --objective dpo --batch-size 1"
)
STREAMING = {"inspect": "inspect {ft} {base} -o {out}", "drop": "drop {ft} {base} -o {out}"}
MERGING = ("inspect", "drop", "drop-study", "sweep layers-drop")


class _Shot:
    """Unpickled, it writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "a pickle was loaded")


class Traps:
    """A pair of models, rows to use them with, and what is laid into the folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "marker"
        self.ft, self.base = save_llama_pair(folder)
        self.adapter = folder / "adapter"
        rows = [{"prompt": "ab ", "completion": "cde"}] * 4
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = [{"prompt": "ab ", "chosen": "cd", "rejected": "dc"}] * 4
        (folder / "pref.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wanted))

    def run(self, line: str, *more: str) -> Result:
        """A command, with a yes on standard input."""
        places = {
            "ft": self.ft,
            "base": self.base,
            "out": self.folder / "out",
            "rows": self.folder / "rows.jsonl",
            "preferences": self.folder / "pref.jsonl",
        }
        arguments = [part.format(**places) for part in line.split()]
        return CliRunner().invoke(app, [*arguments, "-q", *more], input="y\n" * 9)

    def edit(self, file: Path, **changed: Any) -> None:
        held = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**held, **changed}))

    def code(self, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            f"open({str(self.marker)!r}, 'w').write('code was run')\n"
            "import transformers\n"
            "class TrapConfig(transformers.LlamaConfig): model_type = 'trap'\n"
            "class Trap(transformers.LlamaForCausalLM): config_class = TrapConfig\n"
            "class TrapTokenizer(transformers.PreTrainedTokenizerFast): pass\n"
            "def generate(model, *args, **more): return model\n"
        )

    def pickles(self, folder: Path) -> None:
        for name in PICKLES:
            (folder / name).write_bytes(pickle.dumps(_Shot(self.marker)))

    def own_class(self, folder: Path) -> None:
        """An architecture that only the folder's code has."""
        self.edit(
            folder / "config.json",
            architectures=["Trap"],
            model_type="trap",
            auto_map={"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.Trap"},
        )
        self.code(folder, "trap.py")

    def own_tokenizer(self, folder: Path) -> None:
        """A tokenizer that only the folder's code has."""
        self.edit(
            folder / "tokenizer_config.json",
            tokenizer_class="TrapTokenizer",
            auto_map={"AutoTokenizer": ["trap.TrapTokenizer", "trap.TrapTokenizer"]},
        )
        self.code(folder, "trap.py")

    def beside(self, folder: Path) -> None:
        """Code and pickles beside a model that needs none."""
        named = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.Trap"}
        self.edit(folder / "config.json", auto_map=named, custom_generate="custom_generate")
        own = {"AutoTokenizer": ["trap.TrapTokenizer", None]}
        self.edit(folder / "tokenizer_config.json", auto_map=own)
        self.edit(folder / "generation_config.json", custom_generate="custom_generate")
        self.code(folder, "trap.py")
        self.code(folder, "custom_generate/generate.py")
        self.pickles(folder)

    def pickled(self, folder: Path) -> None:
        """Pickles in place of safetensors."""
        (folder / SINGLE).unlink()
        self.pickles(folder)

    def renamed(self, folder: Path) -> None:
        """Safetensors that only deltalens would find, and pickles where transformers looks."""
        (folder / SINGLE).rename(folder / "other.safetensors")
        self.pickles(folder)

    def kernel(self, folder: Path) -> None:
        """A kernel of the hub to compute attention with."""
        self.edit(folder / "config.json", attn_implementation="evil/kernel")

    def adapted(self, folder: Path) -> None:
        """An adapter beside the model, pickled, on a base elsewhere."""
        self.edit(
            folder / "adapter_config.json",
            peft_type="LORA",
            base_model_name_or_path="evil/base",
            auto_mapping={"base_model_class": "Trap", "parent_library": "trap"},
        )
        self.pickles(folder)

    def save_adapter(self, **changed: Any) -> None:
        """A LoRA adapter for the base, with pickles and a base of another name."""
        import peft
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(self.base)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = peft.get_peft_model(model, config)
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        made.save_pretrained(self.adapter)
        self.code(self.adapter, "trap.py")
        self.pickles(self.adapter)
        mapping = {"base_model_class": "Trap", "parent_library": "trap"}
        changed = {
            "base_model_name_or_path": "evil/base",
            "auto_mapping": mapping,
            "revision": "trap",
            **changed,
        }
        self.edit(self.adapter / "adapter_config.json", **changed)
        self.ft = self.adapter


@pytest.fixture
def traps(tmp_path: Path) -> Traps:
    return Traps(tmp_path)


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("deltalens: ")
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1, result.stderr
    for part in said:
        assert part in result.stderr, result.stderr


@pytest.mark.parametrize("command", LOADING)
def test_a_models_own_code_is_refused_unasked(traps: Traps, command: str) -> None:
    for folder in (traps.ft, traps.base):
        traps.own_class(folder)
    result = traps.run(LOADING[command])
    assert not traps.marker.exists()
    refused(result, "code that is stored with the checkpoint")
    assert re.search("trust[-_]remote[-_]code", result.stderr), result.stderr


@pytest.mark.parametrize("command", ["drop-study", "train mft", "compare", "efficiency"])
def test_a_tokenizers_own_code_is_refused_unasked(traps: Traps, command: str) -> None:
    traps.own_tokenizer(traps.ft)
    result = traps.run(LOADING[command])
    assert not traps.marker.exists()
    refused(result, "code that is stored with the checkpoint")


@pytest.mark.parametrize("trap", ["pickled", "renamed", "kernel", "adapted"])
@pytest.mark.parametrize("command", ["drop-study", "landscape", "train gmt", "train sft, dpo"])
def test_what_would_be_loaded_from_elsewhere_is_refused(
    traps: Traps, command: str, trap: str
) -> None:
    lay: Callable[[Path], None] = getattr(traps, trap)
    for folder in (traps.ft, traps.base):
        lay(folder)
    result = traps.run(LOADING[command])
    assert not traps.marker.exists()
    assert result.exit_code == 2, (result.output, result.exception)


@pytest.mark.parametrize("command", [*STREAMING, "drop-study", "train sft", "train lora"])
def test_code_and_pickles_beside_a_model_that_needs_none_are_left_alone(
    traps: Traps, command: str
) -> None:
    for folder in (traps.ft, traps.base):
        traps.beside(folder)
    result = traps.run({**STREAMING, **LOADING}[command])
    assert not traps.marker.exists()
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("command", LOADING)
def test_code_and_pickles_beside_a_model_are_left_alone_by_every_command(
    traps: Traps, command: str
) -> None:
    for folder in (traps.ft, traps.base):
        traps.beside(folder)
    result = traps.run(LOADING[command])
    assert not traps.marker.exists()
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("command", STREAMING)
def test_commands_that_stream_weights_need_no_code(traps: Traps, command: str) -> None:
    for folder in (traps.ft, traps.base):
        traps.own_class(folder)
        traps.own_tokenizer(folder)
    assert traps.run(STREAMING[command]).exit_code == 0
    assert not traps.marker.exists()


@pytest.mark.parametrize("command", MERGING)
def test_a_base_with_code_of_its_own_is_not_merged_unasked(traps: Traps, command: str) -> None:
    traps.save_adapter()
    traps.own_class(traps.base)
    result = traps.run({**STREAMING, **LOADING}[command], "--merge-adapter")
    assert not traps.marker.exists()
    refused(result, "code that is stored with the checkpoint")
    assert re.search("trust[-_]remote[-_]code", result.stderr), result.stderr


def test_a_pickled_base_is_not_merged(traps: Traps) -> None:
    traps.save_adapter()
    traps.pickled(traps.base)
    refused(traps.run(STREAMING["inspect"], "--merge-adapter"))
    assert not traps.marker.exists()


def test_a_base_that_only_a_pickle_holds_is_not_merged(traps: Traps) -> None:
    traps.save_adapter()
    traps.pickled(traps.base)
    held = load_file(traps.adapter / "adapter_model.safetensors")
    torch.save({name: torch.zeros(8, 8) for name in held}, traps.base / PICKLES[0])
    refused(traps.run(STREAMING["inspect"], "--merge-adapter"), "safetensors")


def test_a_pickled_adapter_is_not_merged(traps: Traps) -> None:
    traps.save_adapter()
    (traps.adapter / "adapter_model.safetensors").unlink()
    refused(traps.run(STREAMING["inspect"], "--merge-adapter"), "pickles are not loaded")
    assert not traps.marker.exists()


def test_what_an_adapter_names_is_not_followed(traps: Traps) -> None:
    traps.save_adapter()
    traps.beside(traps.base)
    result = traps.run(STREAMING["inspect"], "--merge-adapter")
    assert not traps.marker.exists()
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "XLORA", "adapters": {"0": "evil/adapter"}}, "loads further models"),
        ({"peft_type": "SHADOW", "shadow_model": "evil/base"}, "loads further models"),
        ({"megatron_config": {"a": 1}, "megatron_core": "trap"}, "a module to import"),
    ],
)
def test_an_adapter_that_loads_something_else_is_refused(
    traps: Traps, changed: dict[str, Any], said: str
) -> None:
    traps.save_adapter(**changed)
    refused(traps.run(STREAMING["inspect"], "--merge-adapter"), said)
    assert not traps.marker.exists()


def test_a_tokenizer_of_an_adapter_is_not_run(traps: Traps) -> None:
    traps.save_adapter()
    shutil.copy(traps.base / "tokenizer.json", traps.adapter)
    traps.own_tokenizer(traps.adapter)
    refused(
        traps.run(STREAMING["inspect"], "--merge-adapter"),
        "code that is stored with the checkpoint",
    )
    assert not traps.marker.exists()


def test_trusted_code_is_the_folders_and_no_other(traps: Traps) -> None:
    traps.own_class(traps.ft)
    traps.edit(
        traps.ft / "config.json",
        auto_map={
            "AutoConfig": "evil/repo--trap.TrapConfig",
            "AutoModelForCausalLM": "evil/repo--trap.Trap",
        },
    )
    result = traps.run(LOADING["train sft"], "--trust-remote-code")
    refused(result, "another repository", "copy it into the folder")
    assert not traps.marker.exists()


def test_code_that_is_trusted_is_run(traps: Traps) -> None:
    """So that the other tests do not pass because the trap would never go off."""
    traps.own_class(traps.ft)
    traps.run(LOADING["train sft"], "--trust-remote-code")
    assert traps.marker.read_text() == "code was run"


def test_a_pickle_would_go_off(traps: Traps) -> None:
    traps.pickles(traps.ft)
    pickle.loads((traps.ft / PICKLES[0]).read_bytes())
    assert traps.marker.read_text() == "a pickle was loaded"


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "RagRetriever", "Trainer", "nothing"])
def test_what_a_configuration_names_is_a_model_or_nothing(name: str) -> None:
    assert empty_model({"architectures": [name], "auto_map": {}}) is None
