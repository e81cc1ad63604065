"""Every architecture: what `drop` writes is what plain transformers loads and a study evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltalens
from deltalens.io import matching
from deltalens.io.checkpoint import open_checkpoint
from deltalens.studies.live import LiveModel
from tests.support.checkpoint_pairs import (
    SHARD,
    Kind,
    Pair,
    PairOf,
    differing,
    fine_tune,
    plain,
    state_of,
)
from tests.support.models import FAMILIES, initialized, llama, save, tiny
from tests.support.runs import Capture, captured, succeeds

pytestmark = pytest.mark.parity

DTYPES = (torch.float32, torch.bfloat16)
EVERY = [
    Kind(family, dtype, sharded, tied)
    for family in FAMILIES
    for dtype in DTYPES
    for sharded in (False, True)
    for tied in (False, True)
]
QUICK = {(torch.float32, False, False), (torch.bfloat16, True, True)}
KINDS = [
    pytest.param(
        kind,
        id=str(kind),
        marks=() if (kind.dtype, kind.sharded, kind.tied) in QUICK else pytest.mark.slow,
    )
    for kind in EVERY
]
POINTS = (
    ("salient", 0.3, 0),
    ("trivial", 0.7, 0),
    ("random", 0.3, 0),
    ("random", 0.7, 1),
    ("trivial", 0.0, 0),
    ("trivial", 1.0, 0),
)


def dropped_equals_live(pair: Pair, folder: Path, live: Capture, **spec: Any) -> None:
    """Each point's `drop`, loaded by plain transformers, has the bits of the study's model."""
    for strategy, rate, seed in POINTS:
        out = folder / f"{strategy}-{rate}-{seed}"
        deltalens.drop(pair.ft, pair.base, out, strategy=strategy, rate=rate, seed=seed, **spec)
        first = strategy if rate in (0, 1) else None
        of_live = live.states[("salient" if first else strategy, rate, 0 if first else seed)]
        assert differing(state_of(plain(out)), of_live) == [], (strategy, rate, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_drop_writes_loads_as_the_model_that_the_study_had(
    kind: Kind, pair_of: PairOf, tmp_path: Path
) -> None:
    pair = pair_of(kind)
    scope = "layer" if kind.sharded else "tensor"
    live = captured(pair, tmp_path / "study", rates=["0.3", "0.7"], seeds=2, scope=scope)
    dropped_equals_live(pair, tmp_path, live, scope=scope)
    ft, base = state_of(plain(pair.ft)), state_of(plain(pair.base))
    assert differing(live.states["salient", 0.0, 0], ft) == []
    assert differing(live.states["salient", 1.0, 0], base) == []
    changed = set(differing(ft, base))
    for point in POINTS[:4]:
        touched = set(differing(live.states[point], ft))
        assert touched <= changed
        assert len(touched) > len(changed) / 2, f"{point} did next to nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_drop_and_drop_study_run_on(family: str, pair_of: PairOf, tmp_path: Path) -> None:
    pair = pair_of(family=family, dtype=torch.bfloat16, sharded=True, tied=True)
    both = str(pair.ft), str(pair.base)
    groups = json.loads(succeeds("inspect", *both, "--json"))["groups"]
    assert groups[0]["level"] == "overall"
    assert 0 < groups[0]["unchanged"] < 1
    out = tmp_path / "out"
    done = json.loads(succeeds("drop", *both, "-o", out, "--rate", "0.7", "--json"))
    assert abs(done["put_back"] - 0.7 * done["entries"]) < 60
    plain(out)
    study = json.loads(
        succeeds(
            *("drop-study", *both, "-o", tmp_path / "study", "--rates", "0.5", "--seeds", 1),
            *("--fidelity-tokens", 4, "--json"),
        )
    )
    assert study["metric"] == "top1_agreement"
    assert study["fine_tuned"] == 1.0
    assert set(study["strategies"]) == {"salient", "trivial", "random"}


def test_every_pair_called_sharded_has_several_shards(pair_of: PairOf) -> None:
    few = [
        str(kind)
        for kind in EVERY
        if kind.sharded and len(list(pair_of(kind).ft.glob("model-*.safetensors"))) < 2
    ]
    assert few == []


def test_mixtral_experts_are_apart_in_the_file_and_fused_in_the_live_model(
    pair_of: PairOf,
) -> None:
    pair = pair_of(family="mixtral")
    with safe_open(pair.ft / "model.safetensors", "pt") as file:
        stored = [name for name in file.keys() if ".experts." in name]  # noqa: SIM118
    live = [name for name in state_of(plain(pair.ft)) if ".experts." in name]
    assert (len(stored), len(live)) == (2 * 3 * 3, 2 * 2)


def odd_pair(folder: Path, name: str) -> Pair:
    """Pairs whose two sides are stored differently."""
    model = initialized(lambda: llama(name != "untied fine-tune of a tied base"), seed=1)
    pair = Pair(folder / "ft", folder / "base")
    save(model, pair.base, SHARD)
    fine_tune(model)
    if name == "half the precision":
        model.to(torch.bfloat16)
    if name == "enlarged vocabulary":
        model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    if name == "untied fine-tune of a tied base":
        tied = initialized(lambda: llama(True), seed=1)
        save(tied, pair.base, SHARD)
        (pair.base / "model.safetensors").unlink(missing_ok=True)
    save(model, pair.ft)
    if name == "tied and stored twice":
        file = pair.ft / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    if name == "without the model's prefix":
        _strip_prefix(pair.base)
    return pair


def _strip_prefix(base: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for shard in base.glob("model-*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (base / "model.safetensors.index.json").unlink()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "half the precision",
        "enlarged vocabulary",
        "untied fine-tune of a tied base",
        "tied and stored twice",
        "without the model's prefix",
    ],
)
def test_drop_and_study_agree_on_a_pair_stored_differently(name: str, tmp_path: Path) -> None:
    pair = odd_pair(tmp_path, name)
    live = captured(pair, tmp_path / "study", rates=["0.3", "0.7"], seeds=2)
    dropped_equals_live(pair, tmp_path, live)


def test_base_is_rounded_to_the_fine_tune_s_dtype_in_a_wider_model(tmp_path: Path) -> None:
    pair = odd_pair(tmp_path, "half the precision")
    live = captured(pair, tmp_path / "study", rates=["1"], seeds=1, dtype="float32")
    deltalens.drop(pair.ft, pair.base, tmp_path / "out", strategy="salient", rate="1")
    wide = state_of(plain(tmp_path / "out", torch.float32))
    assert differing(live.states["salient", 1.0, 0], wide) == []
    assert differing(wide, state_of(plain(pair.base, torch.float32))), "nothing was rounded"


def test_copy_that_the_model_does_not_share_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = odd_pair(tmp_path, "tied and stored twice")
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_tied_weights_keys", {})
    live = captured(pair, tmp_path / "study", rates=["0.5", "1"], seeds=1)
    assert live.model is not None
    assert live.model.lm_head.weight is not live.model.model.embed_tokens.weight
    for state in live.states.values():
        assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert differing(state_of(live.model), state_of(plain(pair.ft))) == []


def test_some_tensors_are_put_back_and_restored_along_with_their_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = odd_pair(tmp_path, "tied and stored twice")
    base = state_of(plain(pair.base))
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_tied_weights_keys", {})
    model = plain(pair.ft)
    ft = state_of(model)
    live = LiveModel(model, matching.pair(open_checkpoint(pair.ft), open_checkpoint(pair.base)))
    embedding, up = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
    for among, changed in (({embedding}, {embedding, "lm_head.weight"}), ({up}, {up})):
        live.put_back_all(among)
        state = state_of(model)
        assert set(differing(state, ft)) == changed
        assert all(torch.equal(state[name], base[name]) for name in among)
        live.restore(among)
        assert differing(state_of(model), ft) == []


def test_study_takes_the_class_that_the_configuration_names(tmp_path: Path) -> None:
    head = transformers.BertForSequenceClassification
    sizes = {"vocab_size": 40, "intermediate_size": 16, "num_hidden_layers": 1}
    more = {"max_position_embeddings": 32, "num_labels": 3}
    model = initialized(lambda: tiny("bert", head=head, **sizes, **more), seed=3)
    pair = Pair(tmp_path / "ft", tmp_path / "base")
    model.save_pretrained(pair.base)
    fine_tune(model)
    model.save_pretrained(pair.ft)
    live = captured(pair, tmp_path / "study", rates=["0.5"], strategies=["trivial"])
    assert type(live.model) is transformers.BertForSequenceClassification
