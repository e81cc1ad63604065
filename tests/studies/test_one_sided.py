"""Tensors that one checkpoint has and the other lacks: the rest is compared, and they are said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import deltalens
from deltalens.errors import PairingError
from deltalens.io.matching import pair
from deltalens.reports.drop import summarize_drop_study
from tests.support.checkpoint_pairs import Pair, differing, fine_tune, plain, state_of
from tests.support.models import initialized, llama, save, tiny, tiny_config, tokenizer
from tests.support.runs import FEW, captured, command, succeeds
from tests.support.studies import drop_study

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def edit(folder: Path, change: Any) -> None:
    """Store other tensors in a checkpoint of one file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def bert_pair(folder: Path) -> Pair:
    """The commonest fine-tune: a classifier in place of the heads of pre-training."""
    both = Pair(folder / "ft", folder / "base")
    heads = transformers.BertForPreTraining
    initialized(lambda: tiny("bert", head=heads, **SMALL), 1).save_pretrained(both.base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        ft = transformers.BertForSequenceClassification.from_pretrained(both.base, num_labels=3)
    fine_tune(ft)
    ft.save_pretrained(both.ft)
    return both


def old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LayerNorms as bert-base-uncased has them on the hub."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


def mtp_pair(folder: Path) -> Pair:
    """A base with a layer for multi-token prediction, which transformers does not load."""
    both = Pair(folder / "ft", folder / "base")
    model = initialized(lambda: llama(False), seed=1)
    save(model, both.base)
    fine_tune(model)
    save(model, both.ft)
    edit(both.base, lambda stored: {**stored, "mtp.fc.weight": torch.ones(4, 4)})
    return both


def classifier(folder: Path) -> Any:
    return transformers.BertForSequenceClassification.from_pretrained(folder)


def test_classifier_in_place_of_a_head_is_left_and_the_rest_is_compared(tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    found = pair(both.ft, both.base)
    shared = load_file(both.base / "model.safetensors").keys() & load_file(
        both.ft / "model.safetensors"
    )
    assert {one.name for one in found.pairs} == shared
    assert {entry.name for entry in found.ft_only} == {"classifier.weight", "classifier.bias"}
    assert all(entry.name.startswith("cls.") for entry in found.base_only)
    assert any(note.startswith("in the fine-tune only, left as it is: c") for note in found.notes)
    assert any(note.startswith("in the base only: cls.") for note in found.notes)
    deltalens.drop(both.ft, both.base, tmp_path / "out", rate=1)
    dropped, base = classifier(tmp_path / "out"), transformers.BertModel.from_pretrained(both.base)
    assert differing(state_of(dropped.bert), state_of(base)) == []
    assert torch.equal(dropped.classifier.weight, classifier(both.ft).classifier.weight)


def test_strict_refuses_what_is_on_one_side_only(tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    with pytest.raises(PairingError) as caught:
        pair(both.ft, both.base, strict=True)
    assert "'classifier.weight' (F32 [3, 16]) is not in the base" in str(caught.value)
    assert "'cls.predictions.bias' (F32 [64]) is in the base only" in str(caught.value)
    for name in ("inspect", "drop", "drop-study", "sweep layers-drop", "landscape"):
        out = () if name == "inspect" else ("-o", tmp_path / "out")
        out += ("--metrics", "kl") if name == "landscape" else ()
        result = command(*name.split(), both.ft, both.base, "--strict", *out)
        assert result.exit_code == 2
        assert "is in the base only" in result.stderr, (name, result.stderr)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exclude", ["^classifier|^cls", "class|cls"])
def test_patterns_match_names_of_either_side(exclude: str, tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    found = pair(both.ft, both.base, exclude=exclude, strict=True)
    assert not any("only" in note for note in found.notes)
    assert found.unpaired, "left out or not, rate 1 is not the base"
    chosen = pair(both.ft, both.base, include="embeddings", strict=True)
    assert {one.name.split(".")[1] for one in chosen.pairs} == {"embeddings"}


@pytest.mark.parametrize("sides", ["base", "ft", "both"])
def test_old_names_of_layer_norms_are_mapped(sides: str, tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    wanted = pair(both.ft, both.base)
    for side in ("ft", "base"):
        if sides in (side, "both"):
            edit(getattr(both, side), old_names)
    found = pair(both.ft, both.base)
    assert found.entries == wanted.entries
    assert all(one.ft.shape == one.base.shape for one in found.pairs)
    by_old_name = pair(both.ft, both.base, include="gamma")
    assert len(by_old_name.pairs) == 5
    live = captured(both, tmp_path / "study", rates=["0.5"], strategies=["trivial"])
    deltalens.drop(both.ft, both.base, tmp_path / "out", rate="0.5")
    of_drop = state_of(classifier(tmp_path / "out"))
    assert differing(of_drop, live.states["trivial", 0.5, 0]) == []


def test_old_names_without_a_configuration_are_mapped_too(tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    edit(both.base, old_names)
    wanted = pair(both.ft, both.base).entries
    for side in (both.ft, both.base):
        (side / "config.json").write_text("{}")
    assert pair(both.ft, both.base).entries == wanted


def test_classifier_of_other_labels_is_another_tensor(tmp_path: Path) -> None:
    head = transformers.BertForSequenceClassification
    both = Pair(tmp_path / "ft", tmp_path / "base")
    model = initialized(lambda: tiny("bert", head=head, **SMALL, num_labels=5), 1)
    model.save_pretrained(both.base)
    ft = transformers.BertForSequenceClassification.from_pretrained(
        both.base, num_labels=2, ignore_mismatched_sizes=True
    )
    fine_tune(ft)
    ft.save_pretrained(both.ft)
    found = pair(both.ft, both.base)
    shapes = "[2, 16] in the fine-tune and [5, 16] in the base"
    assert f"classifier.weight: {shapes}; not compared" in found.notes
    assert {entry.name for entry in found.ft_only} == {"classifier.weight", "classifier.bias"}


def test_fewer_rows_than_the_base_are_compared_with_its_first(tmp_path: Path) -> None:
    both = Pair(tmp_path / "ft", tmp_path / "base")
    model = initialized(lambda: llama(False), seed=1)
    model.resize_token_embeddings(model.config.vocab_size + 5, mean_resizing=False)
    save(model, both.base)
    fine_tune(model)
    model.resize_token_embeddings(model.config.vocab_size - 5)
    save(model, both.ft)
    found = pair(both.ft, both.base)
    assert found.entries == sum(parameter.numel() for parameter in model.parameters())
    live = captured(both, tmp_path / "study", rates=["0.5"], strategies=["random"], seeds=1)
    for rate in (0.5, 1.0):
        out = tmp_path / str(rate)
        deltalens.drop(both.ft, both.base, out, strategy="random", rate=rate)
        assert differing(state_of(plain(out)), live.states["random", rate, 0]) == []
    rows = model.config.vocab_size
    embedding = state_of(plain(both.base))["model.embed_tokens.weight"]
    at_one = live.states["random", 1.0, 0]["model.embed_tokens.weight"]
    assert torch.equal(at_one, embedding[:rows])


def test_names_that_transformers_changes_on_load_find_each_other(tmp_path: Path) -> None:
    """A text model stored inside a model of several kinds, and by the older layout of it."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            projection_dim=16,
        ).to_dict(),
        text_config=tiny_config("llama", **SMALL, num_key_value_heads=2).to_dict(),
    )
    both = Pair(tmp_path / "ft", tmp_path / "base")
    model = initialized(lambda: transformers.LlavaForConditionalGeneration(config), 1)
    model.save_pretrained(both.base)
    fine_tune(model)
    model.save_pretrained(both.ft)
    wanted = pair(both.ft, both.base)

    def renamed(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        live = {
            name: name.replace("language_model.model.", "model.language_model.")
            .replace("vision_tower.", "model.vision_tower.")
            .replace("multi_modal_projector.", "model.multi_modal_projector.")
            .replace("language_model.lm_head.", "lm_head.")
            for name in stored
        }
        return {live[name]: tensor for name, tensor in stored.items()}

    edit(both.base, renamed)
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        both.base, output_loading_info=True
    )
    assert not info["missing_keys"], "transformers itself does not know these names"
    found = pair(both.ft, both.base)
    assert (found.entries, found.unpaired) == (wanted.entries, "")
    assert all(one.ft.shape == one.base.shape for one in found.pairs)


def test_study_measures_the_base_itself_beside_all_put_back(tmp_path: Path) -> None:
    both = mtp_pair(tmp_path)
    spec: dict[str, Any] = {"rates": ["0.5"], "strategies": ["trivial", "random"], "seeds": 1}
    live = captured(both, tmp_path / "kept", **spec)
    base, out = state_of(load_base(both.base)), live.states["base", 1.0, 0]
    assert differing(out, base) == []
    assert live.measured == 5, "fine-tune, two at 0.5, all put back, base"
    record = drop_study(both.ft, both.base, tmp_path / "s", fidelity=FEW, **spec)
    cells = record.cells[record.cells["metric"] == "kl"].set_index(["strategy", "rate"])["value"]
    assert cells["base", 1.0] == cells["trivial", 1.0], "the layer is one that nobody loads"
    said = " ".join(summarize_drop_study(record).sentences())
    assert "at rate 1 " in said
    assert "rate 1 is not the base: 1 tensor is in the base only (16 entries)" in said
    assert set(summarize_drop_study(record).as_json()["strategies"]) == {"trivial", "random"}


def load_base(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder)


def test_base_of_another_kind_is_said_and_left_out_of_every_claim(tmp_path: Path) -> None:
    both = bert_pair(tmp_path)
    found = succeeds(
        *("drop-study", both.ft, both.base, "--rates", "0.5", "--strategies", "trivial"),
        *("--fidelity-tokens", 4, "-o", tmp_path / "s"),
    )
    assert "the base cannot be measured as a model of its own" in found
    assert "is not finite, so the gain from tuning is unknown" in found
    before = (tmp_path / "s" / "cells.csv").read_bytes()
    assert b"base,tensor,1.0,0,kl,nan" in before
    succeeds(
        *("drop-study", both.ft, both.base, "--rates", "0.5", "--strategies", "trivial"),
        *("--fidelity-tokens", 4, "-o", tmp_path / "s"),
    )
    assert (tmp_path / "s" / "cells.csv").read_bytes() == before


def test_figure_draws_the_base_itself_and_says_whose_rate_it_is(tmp_path: Path) -> None:
    from deltalens.figures import drawings

    both = mtp_pair(tmp_path)
    drop_study(
        both.ft, both.base, tmp_path / "s", rates=["0.5"], strategies=["trivial"], fidelity=FEW
    )
    (drawing,) = drawings(tmp_path / "s")
    axis = drawing.figure.axes[0]
    labels = [line.get_label() for line in axis.lines]
    assert [labels.count(name) for name in ("trivial", "base", "fine-tuned")] == [1, 1, 1]
    assert axis.get_xlabel() == "drop rate (of the tensors in both checkpoints)"


def test_inspection_and_drop_say_what_is_on_one_side_only(tmp_path: Path) -> None:
    both = mtp_pair(tmp_path)
    swapped = Pair(tmp_path / "a", tmp_path / "b")
    shutil.copytree(both.base, swapped.ft)
    shutil.copytree(both.ft, swapped.base)
    said = succeeds("inspect", both.ft, both.base)
    assert "note: in the base only: mtp.fc.weight (16 entries)" in said
    done = json.loads(succeeds("drop", swapped.ft, swapped.base, "-o", tmp_path / "o", "--json"))
    assert done["kept"] == {"mtp.fc.weight": "in the fine-tune only"}
    assert "in the fine-tune only, left as it is: mtp.fc.weight (16 entries)" in done["notes"]
    kept = load_file(tmp_path / "o" / "model.safetensors")["mtp.fc.weight"]
    assert torch.equal(kept, torch.ones(4, 4))


def test_head_of_an_untied_base_that_the_fine_tune_ties_is_said(tmp_path: Path) -> None:
    both = Pair(tmp_path / "ft", tmp_path / "base")
    model = initialized(lambda: llama(True), seed=1)
    save(model, both.base)
    edit(both.base, lambda stored: {**stored, "lm_head.weight": torch.ones(len(tokenizer()), 16)})
    fine_tune(model)
    save(model, both.ft)
    found = pair(both.ft, both.base)
    assert [entry.name for entry in found.base_only] == ["lm_head.weight"]
    copied = load_file(both.base / "model.safetensors")["model.embed_tokens.weight"]
    edit(both.base, lambda stored: {**stored, "lm_head.weight": copied.clone()})
    assert pair(both.ft, both.base).unpaired == ""
