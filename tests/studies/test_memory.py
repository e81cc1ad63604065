"""What streams takes a few hundred megabytes, whatever the models' size.

Each command runs in a process of its own. Its peak may exceed that of the same command on models of
the demo's size by twice the largest tensor and 100 MB: at every scope and strategy, on a usual
fine-tune, on one all of whose deltas are equal (so every entry is tied), and on 1.2 B parameters.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.drop import make_pair
from deltalens.demo.model import build_model, build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE
from deltalens.io.checkpoint import open_checkpoint

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3000)]

DROPS = [
    ("drop", scope, strategy)
    for scope in ("tensor", "layer", "global")
    for strategy in ("salient", "trivial", "random")
]
COMMANDS = [("inspect",), *DROPS, *(("rank", scope) for scope in ("tensor", "layer", "global"))]


class Models(NamedTuple):
    """A pair of checkpoints."""

    ft: Path
    base: Path

    @property
    def largest(self) -> int:
        """Bytes of the fine-tune's largest tensor."""
        return max(one.end - one.begin for one in open_checkpoint(self.ft).tensors.values())


def usual(folder: Path) -> Models:
    """254 M parameters, as the benchmarks have them."""
    return Models(*make_pair(folder))


def tied(folder: Path) -> Models:
    """The same shapes, and deltas of exactly 0.25 everywhere."""
    found = Models(*make_pair(folder))
    for file in found.base.glob("*.safetensors"):
        shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
        base = {n: 1 + torch.randint(64, shape).bfloat16() / 128 for n, shape in shapes.items()}
        save_file(base, file, {"format": "pt"})
        save_file({n: t + 0.25 for n, t in base.items()}, found.ft / file.name, {"format": "pt"})
    return found


def large(folder: Path) -> Models:
    """1.2 B parameters in 12 shards, block by block."""
    wide, inner, blocks = 2048, 5504, 22
    names = {"self_attn.q_proj": (wide, wide), "self_attn.o_proj": (wide, wide)}
    names |= {f"mlp.{one}_proj": (inner, wide) for one in ("gate", "up")}
    names |= {"mlp.down_proj": (wide, inner), "self_attn.kv_proj": (wide, wide)}
    shapes = [
        {f"model.layers.{at + i}.{name}.weight": s for i in range(2) for name, s in names.items()}
        for at in range(0, blocks, 2)
    ]
    shapes.append({"model.embed_tokens.weight": (65_536, wide), "lm_head.weight": (65_536, wide)})
    found = Models(folder / "ft", folder / "base")
    torch.manual_seed(0)
    for place in found:
        place.mkdir()
    index = {}
    for number, tensors in enumerate(shapes):
        file = f"model-{number + 1:05}-of-{len(shapes):05}.safetensors"
        index |= dict.fromkeys(tensors, file)
        base = {name: torch.randn(shape).bfloat16() * 0.02 for name, shape in tensors.items()}
        save_file(base, found.base / file, {"format": "pt"})
        ft = {n: t + (torch.randn(t.shape) * 1e-3).bfloat16() for n, t in base.items()}
        save_file(ft, found.ft / file, {"format": "pt"})
    for place in found:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (place / "model.safetensors.index.json").write_text(text)
    return found


KINDS = {"254 M": usual, "254 M, all tied": tied, "1.2 B": large}


def peak(models: Models, command: tuple[str, ...], out: Path) -> int:
    """Bytes."""
    what = [*command, str(out)] if command[0] == "drop" else command
    program = [sys.executable, "-m", "tests.support.peak", *map(str, models), *what]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shutil.rmtree(out, ignore_errors=True)
    return int(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], int]:
    """The peak of every command on the demo's models."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    model = build_model(DEFAULT_RECIPE, build_tokenizer(DEFAULT_RECIPE))
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 1e-3)
    model.save_pretrained(folder / "ft")
    models = Models(folder / "ft", folder / "base")
    return {command: peak(models, command, folder / "out") for command in COMMANDS}


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_stays_within_the_bound(
    kind: str, tmp_path: Path, least: dict[tuple[str, ...], int]
) -> None:
    models = KINDS[kind](tmp_path)
    above = {
        command: (peak(models, command, tmp_path / "out") - least[command]) / 1e6
        for command in COMMANDS
    }
    for command, more in above.items():
        print(f"{kind}: {' '.join(command)}: {least[command] / 1e6:.0f} MB + {more:.0f} MB")
    bound = 2 * models.largest / 1e6 + 100
    assert {command: more for command, more in above.items() if more > bound} == {}, bound
