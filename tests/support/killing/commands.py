"""Every command that writes: on small models, with what shows that it came to the same."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from deltalens.io.locks import is_remains
from tests.support.training_folders import preferences, write_model, write_rows

OUT = "out"
"""What a command writes, in the place where it works."""


@dataclass(frozen=True)
class Inputs:
    """What all commands read."""

    base: Path
    ft: Path
    other: Path
    adapter: Path
    rows: Path
    test: Path
    pairs: Path
    constant: Path
    """A recipe with a constant rate: there one step too many is seen in the weights."""


def write_inputs(folder: Path) -> Inputs:
    """Models and rows, small."""
    from peft import LoraConfig, get_peft_model

    base = write_model(folder / "base")
    for number, name in enumerate(("ft", "other"), 1):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / name, max_shard_size="20KB")
        for file in base.glob("tokenizer*"):
            shutil.copy(file, folder / name)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder / "adapter")
    (folder / "constant.yaml").write_text("lr_scheduler_type: constant\n")
    rows = [{"prompt": f"{i}+{i % 7}=", "completion": str(i + i % 7)} for i in range(24)]
    return Inputs(
        base,
        folder / "ft",
        folder / "other",
        folder / "adapter",
        write_rows(folder / "train.jsonl", rows[:16]),
        write_rows(folder / "test.jsonl", rows[16:]),
        write_rows(folder / "pairs.jsonl", preferences()),
        folder / "constant.yaml",
    )


@dataclass(frozen=True)
class Command:
    """A command, and how often it is killed."""

    name: str
    kills: int
    arguments: Callable[[Inputs], list[str]]
    """Without the folder that is written."""
    came_to: Callable[[Path], Any]
    """What repeats, of the folder that is written."""
    option: str = "-o"
    """In front of that folder; empty where it is an argument."""
    resume: tuple[str, ...] = ()
    """What the second call has in addition, where the first one has left something."""
    done: str = ""
    """What a second call says, and nothing else, where the first one had been done already."""
    prepare: str | None = None
    """The command whose finished folder it works on."""
    phases: tuple[str, ...] = ()
    """Of a training; each is hit."""
    extra: tuple[str, ...] = ("-q",)
    """Further options; `OUT` stands for that folder."""

    def call(self, inputs: Inputs, work: Path) -> list[str]:
        """Its arguments in a place of work."""
        where = [self.option] if self.option else []
        extra = (option.replace("OUT", str(work / OUT)) for option in self.extra)
        return [*self.arguments(inputs), *where, str(work / OUT), *extra]


def left_in(work: Path) -> list[str]:
    """Every file and folder; not the runs of a training, of which each call has its own."""
    names = (str(found.relative_to(work)) for found in work.rglob("*"))
    return sorted(name for name in names if not name.startswith(f"{OUT}/run"))


def stale_in(work: Path) -> list[str]:
    """What is under temporary names, and locks of what has ended."""
    return [str(found) for found in work.rglob("*") if is_remains(found.name)]


def _study(out: Path) -> Any:
    lines = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    settings = [json.dumps(line["setting"], sort_keys=True) for line in lines]
    assert len(set(settings)) == len(settings), "a cell was measured twice"
    return (out / "cells.csv").read_bytes(), sorted(settings)


def _timings(out: Path) -> Any:
    """Times are others each time."""
    with (out / "cells.csv").open() as stream:
        return [(row["method"], row["repeat"], row["metric"]) for row in csv.DictReader(stream)]


def _masks(file: Path) -> Any:
    with safe_open(file, "numpy") as held:
        return held.metadata(), held.get_tensor("kept").tobytes()


def _training(out: Path) -> Any:
    names = ("model.safetensors", "metrics.jsonl", "config.json", "tokenizer.json")
    names += ("adapter/adapter_model.safetensors",)
    found: dict[str, Any] = {n: (out / n).read_bytes() for n in names if (out / n).exists()}
    if (out / "masks.safetensors").exists():
        found["masks"] = _masks(out / "masks.safetensors")
    if (out / "adapter").exists():
        found["adapter"] = _weights(out / "adapter")
    record = json.loads((out / "train.json").read_text())
    found["asked"] = record["asked"]
    found["facts"] = {
        name: record["facts"].get(name)
        for name in ("steps", "chosen_step", "removed", "removed_of_all")
    }
    return found


def _weights(out: Path) -> Any:
    return {file.name: file.read_bytes() for file in out.glob("*.safetensors*")}


def _pictures(out: Path) -> Any:
    return {
        file.name: file.read_bytes() for kind in ("png", "svg") for file in out.glob(f"*.{kind}")
    }


def _page(out: Path) -> bytes:
    """It names the folder that it is made from."""
    return (out / "report.html").read_bytes().replace(str(out).encode(), b"")


SMALL = ["--steps", "2", "--batch-size", "4", "--lr", "1e-2"]
PHASES = (
    "before the first step",
    "between steps",
    "a checkpoint",
    "after the last checkpoint",
    "the model",
    "moving",
)


def _trained(method: str, *more: str, steps: int = 3) -> Callable[[Inputs], list[str]]:
    options = ["--steps", str(steps), "--batch-size", "4", "--lr", "1e-2"]
    options += ["--checkpoint-every", "2", *more]

    def arguments(inputs: Inputs) -> list[str]:
        data = ["--train-data", str(inputs.rows), "--eval-data", str(inputs.test)]
        own = [str(inputs.test) if one == "TEST" else one for one in options]
        return ["train", method, str(inputs.base), *data, "--config", str(inputs.constant), *own]

    return arguments


def _swept(*command: str) -> Callable[[Inputs], list[str]]:
    def arguments(inputs: Inputs) -> list[str]:
        data = ["--train-data", str(inputs.rows), "--eval-data", str(inputs.test)]
        named = [str(inputs.ft) if part == "FT" else part for part in command]
        named = [str(inputs.base) if part == "BASE" else part for part in named]
        return [*named, *data, *SMALL]

    return arguments


def _of_pair(*command: str) -> Callable[[Inputs], list[str]]:
    def arguments(inputs: Inputs) -> list[str]:
        named = {"FT": inputs.ft, "BASE": inputs.base, "OTHER": inputs.other, "TEST": inputs.test}
        named |= {"ADAPTER": inputs.adapter, "ROWS": inputs.rows}
        return [str(named.get(part, part)) for part in command]

    return arguments


def _training_command(name: str, kills: int, arguments: Callable[[Inputs], list[str]]) -> Command:
    return Command(
        name, kills, arguments, _training, resume=("--resume",), done="finished", phases=PHASES
    )


def _dpo(inputs: Inputs) -> list[str]:
    options = ["--objective", "dpo", "--steps", "2", "--batch-size", "4", "--checkpoint-every", "1"]
    return ["train", "gmt", str(inputs.base), "--train-data", str(inputs.pairs), *options]


_EXISTS = "exists already"
_DROP = ("drop", "FT", "BASE", "--rate", "0.5")
COMMANDS = [
    Command("drop", 12, _of_pair(*_DROP), _weights, done=_EXISTS),
    Command(
        "drop --merge-adapter",
        6,
        _of_pair("drop", "ADAPTER", "BASE", "--rate", "0.5", "--merge-adapter"),
        _weights,
        done=_EXISTS,
    ),
    Command("inspect", 12, _of_pair("inspect", "FT", "BASE"), _study),
    Command(
        "drop-study",
        12,
        _of_pair("drop-study", "FT", "BASE", "--rates", "0:1:0.25", "--fidelity-tokens", "4"),
        _study,
    ),
    Command(
        "drop-study --data",
        10,
        _of_pair("drop-study", "FT", "BASE", "--rates", "0:1:0.25", "--data", "TEST"),
        _study,
    ),
    Command(
        "salience",
        8,
        _of_pair("salience", "BASE", "--data", "TEST", "--against", "FT", "--batch-size", "2"),
        _study,
    ),
    Command(
        "sweep layers-drop",
        10,
        _of_pair("sweep", "layers-drop", "FT", "BASE", "--data", "TEST", "--group-sizes", "1"),
        _study,
    ),
    Command(
        "sweep layers mft",
        8,
        _swept("sweep", "layers", "mft", "FT", "--group-sizes", "1", "--seeds", "1"),
        _study,
    ),
    Command(
        "sweep mask-ratio gmt",
        8,
        _swept("sweep", "mask-ratio", "gmt", "BASE", "--mask-ratios", "0.5", "--seeds", "1"),
        _study,
    ),
    Command(
        "sweep mask-ratio mft --jobs 2",
        4,
        _swept(
            *("sweep", "mask-ratio", "mft", "FT", "--mask-ratios", "0.1,0.5", "--seeds", "1"),
            *("--jobs", "2"),
        ),
        _study,
    ),
    Command(
        "sweep data-ratio",
        8,
        _swept("sweep", "data-ratio", "mft,sft", "FT", "--data-ratios", "0.5,1", "--seeds", "1"),
        _study,
    ),
    Command(
        "sweep density",
        8,
        _swept("sweep", "density", "lora,pissa", "BASE", "--ranks", "1", "--seeds", "1"),
        _study,
    ),
    Command(
        "sweep masks",
        8,
        _swept(
            *("sweep", "masks", "speft:examples=8", "BASE", "--scopes", "global,tensor"),
            *("--refresh-every", "2", "--seeds", "1"),
        ),
        _study,
    ),
    Command(
        "compare --keep-checkpoints",
        10,
        _swept(
            *("compare", "mft,sft,l1-mask", "FT", "--seeds", "1", "--eval-every", "1"),
            "--keep-checkpoints",
        ),
        _study,
    ),
    Command(
        "efficiency",
        6,
        _of_pair(
            *("efficiency", "random-mask,gmt", "BASE", "--train-data", "ROWS"),
            *("--repeats", "2", "--block-steps", "1", "--batch-size", "4"),
        ),
        _timings,
    ),
    Command(
        "evaluate",
        8,
        _of_pair("evaluate", "FT", "OTHER", "BASE", "--data", "TEST"),
        _study,
    ),
    Command(
        "landscape",
        10,
        _of_pair("landscape", "FT", "OTHER", "--data", "TEST", "--grid", "7"),
        _study,
    ),
    _training_command("train sft", 18, _trained("sft")),
    _training_command("train gmt --probe", 16, _trained("gmt", "--probe", "--mask-ratio", "0.5")),
    _training_command(
        "train mft --choose-on", 18, _trained("mft", "--choose-on", "TEST", "--eval-every", "1")
    ),
    _training_command("train lora", 8, _trained("lora", "--lora-rank", "2", "--keep-checkpoints")),
    _training_command("train gmt --objective dpo", 8, _dpo),
    Command(
        "train l1-mask",
        6,
        _of_pair("train", "l1-mask", "FT", "--train-data", "ROWS", "--eval-data", "TEST"),
        _training,
        resume=("--resume",),
        done="finished",
    ),
    Command(
        "plot", 6, lambda inputs: ["plot"], _pictures, option="", prepare="drop-study", extra=()
    ),
    Command(
        "report",
        6,
        lambda inputs: ["report"],
        _page,
        option="",
        prepare="drop-study",
        extra=("-o", "OUT/report.html"),
    ),
    Command(
        "monitor", 6, lambda inputs: ["monitor"], _pictures, option="", prepare="train gmt --probe"
    ),
]
