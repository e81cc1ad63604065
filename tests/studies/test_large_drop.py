"""`drop` on a bf16 pair of 254 M parameters in 3 shards, read back with the safetensors library."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import deltalens
from benchmarks.drop import make_pair
from tests.support.cuts import resized

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.timeout(3000)]

STRATEGIES = ("salient", "trivial", "random")
SCOPES = ("tensor", "layer", "global")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def bits(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor's bits."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name).view(torch.int16) for name in stored.keys()}  # noqa: SIM118
    return found


def deltas_of(ft: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return (ft.view(torch.bfloat16).float() - base.view(torch.bfloat16).float()).abs()


def unit_of(name: str, scope: str) -> str:
    if scope == "global":
        return ""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name if scope == "tensor" or number is None else ".".join(parts[: number + 1])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exactly_the_asked_entries_are_put_back(models, tmp_path, strategy, scope):
    ft, base = (bits(folder) for folder in models)
    before: dict[str, torch.Tensor] = {}
    for rate in (0.3, 0.7):
        out = tmp_path / str(rate)
        result = deltalens.drop(*models, out, strategy=strategy, rate=rate, scope=scope)
        dropped = bits(out)
        assert dropped.keys() == ft.keys()
        put_back = {name: (dropped[name] != ft[name]).view(-1) for name in ft}
        for name in ft:
            assert torch.equal(
                dropped[name].view(-1),
                torch.where(put_back[name], base[name].view(-1), ft[name].view(-1)),
            ), f"{name}: an entry is neither the base's nor the fine-tune's"
            if before:
                assert bool((put_back[name] | ~before[name]).all()), f"{name}: not nested"
        units: dict[str, list[str]] = {}
        for name in ft:
            units.setdefault(unit_of(name, scope), []).append(name)
        expected = 0
        for names in units.values():
            magnitudes = torch.cat([deltas_of(ft[n], base[n]).view(-1) for n in names])
            gone = torch.cat([put_back[n] for n in names])
            spec = round(rate * magnitudes.numel())
            expected += spec
            changed = int(magnitudes.count_nonzero())
            visible = int(gone.sum())
            if strategy == "salient":
                assert visible == min(spec, changed)
                if 0 < visible < changed:
                    kept = magnitudes[~gone]
                    assert float(magnitudes[gone].min()) >= float(kept.max())
            elif strategy == "trivial":
                assert visible == max(0, spec - (magnitudes.numel() - changed))
                if 0 < visible < changed:
                    kept = magnitudes[~gone]
                    assert float(magnitudes[gone].max()) <= float(kept[kept > 0].min())
            else:
                share = rate * changed
                assert abs(visible - share) <= 6 * (share * (1 - rate)) ** 0.5 + 1
        assert result.put_back == expected
        before = put_back


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ends_reproduce_the_inputs_byte_for_byte(models, tmp_path, strategy):
    for rate, source in ((0, models[0]), (1, models[1])):
        deltalens.drop(*models, tmp_path / str(rate), strategy=strategy, rate=rate)
        wanted, got = bits(source), bits(tmp_path / str(rate))
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_result_depends_neither_on_sharding_nor_on_chunks(models, tmp_path, strategy):
    deltalens.drop(*models, tmp_path / "a", strategy=strategy, rate=0.7, scope="global")
    other = tmp_path / "one-file"
    other.mkdir()
    whole = {name: tensor.view(torch.bfloat16) for name, tensor in bits(models[0]).items()}
    save_file(dict(reversed(whole.items())), other / "model.safetensors", {"format": "pt"})
    config = json.loads((models[0] / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config))
    with resized(file_chunk=77_777):
        deltalens.drop(
            other, models[1], tmp_path / "b", strategy=strategy, rate=0.7, scope="global"
        )
    one, two = bits(tmp_path / "a"), bits(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)
