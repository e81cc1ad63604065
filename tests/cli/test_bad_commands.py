"""Bad input as a user meets it: exit code 2, one message, no traceback, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deltalens import DeltaLensError
from deltalens.cli.main import app
from deltalens.scoring import memory
from tests.support.checkpoint_files import (
    SHARDS,
    SINGLE,
    folder_with,
    left_in,
    save,
    save_llama_pair,
    save_sharded,
    shard_bytes,
    tuned,
    weights,
)

pytestmark = pytest.mark.bad_input


@dataclass(frozen=True)
class Case:
    """What a user has, types, and is told."""

    make: Callable[[Path], object]
    """Changes the good pair `ft`, `base` in a folder."""
    arguments: Sequence[str]
    said: str


def nothing(folder: Path) -> None:
    """Leave the pair as it is."""


def spoil(name: str, value: float) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        model = tuned(weights()) if name == "ft" else weights()
        model["model.norm.weight"][2] = value
        return save(folder / name, model)

    return make


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def lose_a_shard(folder: Path) -> None:
    (folder / "ft" / SINGLE).unlink()
    (save_sharded(folder / "ft", weights()) / SHARDS[0]).unlink()


def quantize(folder: Path) -> None:
    for name in ("ft", "base"):
        save(folder / name, {"w": torch.ones(4, dtype=torch.int8)})


BOTH = ["inspect", "drop", "drop-study"]
WEIGHTS: dict[str, Case] = {
    "no folder": Case(nothing, ["none", "base"], "none: no such file or folder"),
    "no safetensors": Case(remove(f"ft/{SINGLE}"), ["ft", "base"], "ft: no safetensors file in"),
    "truncated": Case(put(f"base/{SINGLE}", b"123"), ["ft", "base"], f"base/{SINGLE}: truncated"),
    "hostile": Case(
        put(f"ft/{SINGLE}", shard_bytes({"w": 1})), ["ft", "base"], "tensor 'w': its entry is not"
    ),
    "missing shard": Case(lose_a_shard, ["ft", "base"], f"'{SHARDS[0]}', which is not in this"),
    "nothing in common": Case(
        lambda folder: save(folder / "base", {"w": torch.ones(2)}),
        ["ft", "base"],
        "ft and base have no tensor in common",
    ),
    "shapes": Case(
        lambda folder: save(
            folder / "base", {n: t[:1] for n, t in weights().items() if "mlp" in n}
        ),
        ["ft", "base", "--include", "mlp"],
        "Every shape differs",
    ),
    "integers only": Case(quantize, ["ft", "base"], "ft: no floating-point tensor (I8)"),
    "NaN": Case(
        spoil("ft", float("nan")), ["ft", "base"], "nan in the fine-tune's tensor 'model.n"
    ),
    "infinity": Case(
        spoil("base", float("inf")), ["ft", "base"], "inf in the base's tensor 'model.norm.weight'"
    ),
    "identical": Case(
        lambda folder: save(folder / "ft", weights()),
        ["ft", "base"],
        "there is no delta to study",
    ),
    "pattern": Case(nothing, ["ft", "base", "--include", "("], "is not a valid regular expression"),
    "no adapter": Case(nothing, ["ft", "base", "--merge-adapter"], "ft: no adapter_config.json"),
}

OWN: dict[str, tuple[str, Case]] = {
    "rate": ("drop", Case(nothing, ["ft", "base", "--rate", "1.5"], "rate 1.5 is outside [0, 1]")),
    "no rate": ("drop", Case(nothing, ["ft", "base", "--rate", "x"], "'x' is not a number")),
    "strategy": ("drop", Case(nothing, ["ft", "base", "--strategy", "big"], "strategy 'big'")),
    "scope": (
        "drop",
        Case(nothing, ["ft", "base", "--scope", "row"], "scope 'row': choose one of"),
    ),
    "rates": ("drop-study", Case(nothing, ["ft", "base", "--rates", "0:2:0.5"], "rate 2 is outs")),
    "steps": ("drop-study", Case(nothing, ["ft", "base", "--rates", "0:1"], "write start:stop:st")),
    "seeds": (
        "drop-study",
        Case(nothing, ["ft", "base", "--seeds", "0"], "seeds 0: must be at least 1"),
    ),
    "metric": (
        "drop-study",
        Case(nothing, ["ft", "base", "--metrics", "bleu"], "metric 'bleu' cannot be"),
    ),
    "dtype": ("drop-study", Case(nothing, ["ft", "base", "--dtype", "int8"], "dtype 'int8': choo")),
    "device": (
        "drop-study",
        Case(nothing, ["ft", "base", "--device", "abacus"], "device 'abacus'"),
    ),
    "meta": (
        "drop-study",
        Case(nothing, ["ft", "base", "--device", "meta"], "device 'meta' canno"),
    ),
    "rows": (
        "drop-study",
        Case(
            put("rows.jsonl", b'{"prompt": "1"}\n{\n'),
            ["ft", "base", "--data", "rows.jsonl"],
            "rows.jsonl: 2 rows cannot be used:\n  - line 1: 'completion' is missing\n  - line 2: ",
        ),
    ),
    "no rows": ("drop-study", Case(nothing, ["ft", "base", "--data", "no"], "no: cannot be read")),
    "no configuration": (
        "drop-study",
        Case(
            nothing,
            ["ft", "base"],
            "ft: a study loads the model, which takes a folder with a config.json",
        ),
    ),
    "unknown architecture": (
        "drop-study",
        Case(put("ft/config.json", b'{"model_type": "x"}'), ["ft", "base"], "cannot load it: "),
    ),
    "code": (
        "drop-study",
        Case(
            put("ft/config.json", b'{"auto_map": {}, "architectures": ["Own"]}'),
            ["ft", "base"],
            "needs code that is stored with the checkpoint, which is not run by default",
        ),
    ),
    "no study": ("plot", Case(nothing, ["ft"], "ft: contains no study")),
}

CASES = [
    *((command, case) for case in WEIGHTS.values() for command in BOTH),
    *OWN.values(),
]
NAMES = [*(f"{command}: {name}" for name in WEIGHTS for command in BOTH), *OWN]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good pair in it."""
    save(tmp_path / "ft", tuned(weights()))
    save(tmp_path / "base", weights())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(place: Path, command: str, arguments: Sequence[str]) -> str:
    """What is said on stderr; checked to be one message, with nothing written."""
    before = left_in(place)
    out = [] if command == "plot" or "--out" in arguments else ["--out", "new/out"]
    result = CliRunner().invoke(app, [command, *arguments, *out])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("deltalens: ")
    assert result.stderr.count("deltalens: ") == 1
    assert "Traceback" not in result.stderr
    assert left_in(place) == before
    return result.stderr


@pytest.mark.parametrize(("command", "case"), CASES, ids=NAMES)
def test_bad_input_ends_with_one_message_and_code_2(place: Path, command: str, case: Case) -> None:
    case.make(place)
    assert case.said in refusal(place, command, case.arguments)


@pytest.mark.parametrize("command", BOTH)
def test_an_output_that_holds_something_else_is_refused(place: Path, command: str) -> None:
    folder_with(place / "taken", {"mine.txt": "mine"})
    said = refusal(place, command, ["ft", "base", "--out", "taken"])
    assert "taken: already exists and contains 'mine.txt'; remove it or choose another" in said


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("out", ["ft", "base", "base/study"])
def test_an_output_that_is_an_input_is_refused(place: Path, command: str, out: str) -> None:
    said = refusal(place, command, ["ft", "base", "--out", out])
    assert f"{out}: is (or lies in) the input" in said


def test_a_model_too_large_is_refused_with_what_is_needed_and_what_there_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 100)
    said = refusal(place, "drop-study", ["ft", "base", "--dtype", "float32"])
    assert "ft: too large for cpu: it needs " in said
    assert "parameters in float32, the largest tensor in fp32, logits of" in said
    assert " GB are free" in said
    for remedy in ("a larger ", "a smaller ", "(bfloat16)", "`inspect` and `drop`"):
        assert remedy in said


def test_the_need_for_memory_is_parameters_largest_tensor_and_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalens import open_checkpoint

    checkpoint = open_checkpoint(save(tmp_path / "ft", weights(), {"vocab_size": 6}))
    needed = 60 * 2 + 24 * 4 + 10 * 6 * 4
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    memory.check_fits(checkpoint, torch.bfloat16, device, 10)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(DeltaLensError, match="too large for cpu"):
        memory.check_fits(checkpoint, torch.bfloat16, device, 10)


@pytest.mark.parametrize(("limit", "free"), [("1000", 700), ("max", None), (None, None)])
def test_what_a_container_leaves_is_its_limit_less_what_is_used_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, free: int | None
) -> None:
    if limit is not None:
        counted = "anon 300\ninactive_file 100\nactive_file 50\n"
        folder_with(
            tmp_path, {"memory.max": limit, "memory.current": "400", "memory.stat": counted}
        )
    names = ("memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(memory, "CGROUPS", ((str(tmp_path), *names),))
    found = memory.free_memory(torch.device("cpu"))
    assert found == free if free is not None else found is None or found > 1 << 20


@pytest.mark.parametrize("size", [10**400, -1, True, "many", None, [1]])
def test_a_vocabulary_of_no_size_does_not_break_the_check(tmp_path: Path, size: object) -> None:
    from deltalens import open_checkpoint

    checkpoint = open_checkpoint(save(tmp_path / "ft", weights(), {"vocab_size": size}))
    memory.check_fits(checkpoint, torch.bfloat16, torch.device("cpu"), 10)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "hidden_size",
            10**9,
            "describes a model of 119,000,000,004 entries, but the checkpoint has only",
        ),
        ("vocab_size", "many", "field 'vocab_size': TypeError"),
        ("num_attention_heads", 0, "ZeroDivisionError"),
        ("hidden_act", "magic", "'magic'"),
        ("rope_parameters", "round", "rope_parameters"),
    ],
)
def test_a_configuration_that_does_not_fit_ends_with_a_message_and_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object, said: str
) -> None:
    ft, _ = save_llama_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = json.loads((ft / "config.json").read_text())
    (ft / "config.json").write_text(json.dumps({**config, field: value}))
    found = refusal(tmp_path, "drop-study", ["ft", "base", "--rates", "0.5"])
    assert found.startswith(
        ("deltalens: ft: transformers cannot load it: ", "deltalens: ft/config")
    )
    assert said in found


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, as the shell starts it."""
    program = Path(sys.executable).with_name("deltalens")
    return subprocess.run(
        [program, *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_program_says_one_line_and_no_traceback(place: Path) -> None:
    done = run(place, "drop", "ft", "base", "--rate", "1.5", "-o", "out")
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == ("", "deltalens: rate 1.5 is outside [0, 1]\n")


def test_the_program_shows_the_traceback_with_debug(place: Path) -> None:
    done = run(place, "drop", "ft", "base", "--rate", "1.5", "-o", "out", "--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "rate 1.5 is outside [0, 1]" in done.stderr.splitlines()[-1]
    assert not (place / "out").exists()


def test_a_name_that_is_neither_here_nor_cached_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refusal(place, "inspect", ["nobody/nothing", "base"])
    assert said.startswith(
        "deltalens: nobody/nothing: no local folder of this name, not in the hub"
    )
    assert "Name a local folder, or download the model once" in said
