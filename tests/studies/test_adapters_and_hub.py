"""A fine-tune that is a PEFT adapter, and one that is named by its hub id, offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

import deltalens
from deltalens.errors import CheckpointError
from deltalens.io.locate import locate, located
from tests.support.checkpoint_pairs import Pair, PairOf, differing, plain, state_of
from tests.support.runs import command, succeeds, write_rows

peft = pytest.importorskip("peft")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def adapter(
    request: pytest.FixtureRequest, pair_of: PairOf, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """A LoRA adapter with weights of its own, and the base that it is for."""
    base = pair_of(family="llama", dtype=request.param).base
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain(base), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return Pair(folder, base)


@pytest.fixture
def merged(adapter: Pair) -> dict[str, torch.Tensor]:
    """What peft itself makes of it."""
    model = peft.PeftModel.from_pretrained(plain(adapter.base), str(adapter.ft))
    return state_of(model.merge_and_unload())


@pytest.mark.parametrize("name", ["inspect", "drop", "drop-study"])
def test_adapter_is_refused_with_the_option_that_merges_it(
    adapter: Pair, tmp_path: Path, name: str
) -> None:
    out = () if name == "inspect" else ("-o", tmp_path / "out")
    result = command(name, adapter.ft, adapter.base, *out)
    assert result.exit_code == 2
    assert f"{adapter.ft}: a PEFT adapter, not a whole model. Set " in result.stderr
    assert not (tmp_path / "out").exists()


def test_merged_adapter_equals_peft_s_own_merge(
    adapter: Pair, merged: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    succeeds(
        *("drop", adapter.ft, adapter.base, "--merge-adapter", "-o", tmp_path / "out"),
        *("--rate", "0", "-q"),
    )
    out = plain(tmp_path / "out")
    assert differing(state_of(out), merged) == []
    changed = differing(merged, state_of(plain(adapter.base)))
    assert len(changed) == 2 * 2


def test_merging_leaves_adapter_and_base_alone_and_cleans_up(adapter: Pair) -> None:
    before = [
        {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        for folder in (adapter.ft, adapter.base)
    ]
    with located(str(adapter.ft), str(adapter.base), merge_adapter=True) as (ft, base):
        assert (ft / "tokenizer.json").is_file()
        assert base == adapter.base
    assert not ft.exists()
    assert before == [
        {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        for folder in (adapter.ft, adapter.base)
    ]


def test_study_of_an_adapter_counts_what_it_left_unchanged(adapter: Pair, tmp_path: Path) -> None:
    spec = ("--rates", "0.5", "--seeds", 1, "--fidelity-tokens", 4, "--merge-adapter", "--json")
    study = ("drop-study", adapter.ft, adapter.base, "-o", tmp_path / "s", *spec)
    found = json.loads(succeeds(*study))
    assert 0.5 < found["unchanged"] < 1
    assert found["fine_tuned"] == 1
    journal = (tmp_path / "s" / "cells.jsonl").read_bytes()
    assert json.loads(succeeds(*study))["strategies"] == found["strategies"]
    assert (tmp_path / "s" / "cells.jsonl").read_bytes() == journal, "merged anew: the same study"


def test_merging_what_is_no_adapter_is_an_error(pair_of: PairOf) -> None:
    pair = pair_of(family="llama")
    result = command("inspect", pair.ft, pair.base, "--merge-adapter")
    assert result.exit_code == 2
    assert "no adapter_config.json, so this is not a PEFT adapter" in result.stderr


def test_adapter_for_another_base_is_an_error(adapter: Pair, pair_of: PairOf) -> None:
    other = pair_of(family="gpt2", tied=True)
    result = command("inspect", adapter.ft, other.base, "--merge-adapter")
    assert result.exit_code == 2
    assert "cannot be merged into" in result.stderr


@pytest.fixture
def hub(pair_of: PairOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A hub's cache with `tiny/ft` and `tiny/base`, as huggingface_hub lays it out; no network."""
    import huggingface_hub.constants as constants

    pair, cache = pair_of(family="llama"), tmp_path / "hub"
    for folder in (pair.ft, pair.base):
        repository = cache / f"models--tiny--{folder.name}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            blob = repository / "blobs" / file.name
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.HF_HUB_CACHE", str(cache), raising=False
    )
    return pair


@pytest.mark.parametrize("suffix", ["", "@main", f"@{COMMIT}"])
def test_cached_snapshot_is_used_offline(hub: Pair, tmp_path: Path, suffix: str) -> None:
    found = locate(f"tiny/ft{suffix}")
    assert found == tmp_path / "hub" / "models--tiny--ft" / "snapshots" / COMMIT
    spec: dict[str, Any] = {"rate": "0.5"}
    deltalens.drop(found, locate("hf:tiny/base"), tmp_path / "from-hub", **spec)
    deltalens.drop(hub.ft, hub.base, tmp_path / "from-folders", **spec)
    files = [load_file(tmp_path / f"from-{p}" / "model.safetensors") for p in ("hub", "folders")]
    assert differing(*files) == []


def test_study_runs_on_hub_ids_offline(hub: Pair, tmp_path: Path) -> None:
    spec = ("--rates", "1", "--strategies", "trivial", "--fidelity-tokens", 4, "--json")
    found = json.loads(succeeds("drop-study", "tiny/ft", "tiny/base", "-o", tmp_path / "s", *spec))
    assert found["fine_tuned"] == 1


@pytest.mark.parametrize("name", ["tiny/lost", "hf:tiny/lost", "tiny/ft@v2"])
def test_missing_snapshot_is_a_clear_error_offline(hub: Pair, tmp_path: Path, name: str) -> None:
    result = command("inspect", name, "tiny/base")
    assert result.exit_code == 2
    assert f"deltalens: {name}: no local folder of this name, not in the hub" in result.stderr
    assert "Traceback" not in result.stderr


def test_existing_path_wins_over_a_hub_id_and_hf_forces_the_hub(
    hub: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub.base, tmp_path / "tiny" / "ft")
    assert locate("tiny/ft") == Path("tiny/ft")
    assert locate("hf:tiny/ft").parent.name == "snapshots"


@pytest.mark.parametrize("name", ["./tiny/ft", "/nowhere/at/all", "lost", "tiny/ft/", "hf:lost"])
def test_what_is_neither_a_path_nor_a_hub_id_asks_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        locate(name)


def fetched_patterns(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """For each snapshot that is wanted from now on, the patterns of its files; none is given."""
    fetched: list[list[str]] = []

    def snapshot(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        fetched.append(allow_patterns)
        raise LocalEntryNotFoundError("no network in a test")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return fetched


def test_hub_gives_no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetched_patterns(monkeypatch)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        locate("tiny/ft")
    (patterns,) = fetched
    assert "*.safetensors" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".pt"))]


@pytest.mark.parametrize("spec", [False, True])
def test_code_of_a_model_is_fetched_only_where_it_may_be_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: bool
) -> None:
    fetched = fetched_patterns(monkeypatch)
    out = ("-o", tmp_path / "out")
    more = ("--trust-remote-code",) if spec else ()
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "abc"}])
    for name in ("drop-study", "sweep layers-drop"):
        assert command(*name.split(), "tiny/ft", "tiny/base", *out, *more).exit_code == 2
    assert command("landscape", "tiny/ft", "--data", rows, *out, *more).exit_code == 2
    assert command("train", "sft", "tiny/ft", "--train-data", rows, *out, *more).exit_code == 2
    assert [("*.py" in patterns) for patterns in fetched] == [spec] * 4


@pytest.mark.parametrize("name", ["train sft", "compare sft", "landscape", "efficiency gmt"])
def test_adapter_in_place_of_a_model_names_no_option_that_the_command_lacks(
    adapter: Pair, tmp_path: Path, name: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "completion": "2"}] * 4)
    data = "--data" if name == "landscape" else "--train-data"
    more = ("--eval-data", rows) if name == "compare sft" else ()
    result = command(*name.split(), adapter.ft, data, rows, "-o", tmp_path / "out", *more)
    assert result.exit_code == 2, result.output
    assert f"{adapter.ft}: a PEFT adapter, not a whole model" in result.stderr
    assert "--merge-adapter" not in result.stderr
