"""Names and texts that come from files, and are made to be slow to look through."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import signal
import time
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import deltalens
import deltalens.cli
import deltalens.figures
from deltalens import DeltaLensError
from deltalens.io.config import counts_layers
from deltalens.io.matching import pair
from deltalens.names import is_in_task_head, is_quantization_data, kind_of
from tests.support.checkpoint_files import save, weights

pytestmark = pytest.mark.bad_input

LENGTH = 100_000
SECONDS = 0.7
"""A pattern that looks once at everything takes a twentieth of it, at that length; a quadratic one
takes many times as much."""
NAMES_OF_FILES = "deltalens.io.temporary.TEMPORARY_NAME"
"""A pattern for the names in a folder, which no file system lets be longer than 255 bytes."""


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every regular expression that a module of ours keeps."""
    for package in (deltalens, deltalens.cli, deltalens.figures):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                kept = value.values() if isinstance(value, dict) else [value]
                for one in kept:
                    if isinstance(one, re.Pattern):
                        yield f"{found.name}.{name}", one


def hostile(pattern: str) -> Iterator[str]:
    """Long texts of the words of a pattern, and of what they begin with; some end as none may."""
    words = re.findall(r"\w{2,}", re.sub(r"\\\w", " ", pattern))
    chains = [f"{one}.{other}" for one, other in itertools.pairwise(words)]
    starts = sorted({*words, *chains, "w", "_", "1", " ", "\n"})
    for word, around in itertools.product(starts, ("{}", ".{}")):
        piece = around.format(word)
        for end in ("", "\n!"):
            yield piece * (LENGTH // len(piece)) + end


class TooLong(BaseException):
    """No handler of ordinary errors may take it."""


def seconds(call: Callable[[str], object], text: str) -> float:
    """Of the processor; twice what is too long at most."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise TooLong

    before, begun = signal.signal(signal.SIGVTALRM, stop), time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
    try:
        with suppress(TooLong):
            call(text)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return time.process_time() - begun


def is_slow(pattern: re.Pattern[str]) -> bool:
    calls = (pattern.search, pattern.fullmatch)
    return any(seconds(call, text) > SECONDS for text in hostile(pattern.pattern) for call in calls)


def test_no_pattern_of_ours_is_slow_on_a_text_made_for_it() -> None:
    kept = dict(patterns())
    assert NAMES_OF_FILES in kept
    for owner in ("deltalens.names", "deltalens.figures.mft_studies"):
        assert any(name.startswith(f"{owner}.") for name in kept)
    assert [n for n, one in kept.items() if n != NAMES_OF_FILES and is_slow(one)] == []


def test_a_slow_pattern_is_noticed() -> None:
    assert is_slow(re.compile(r"(scales?|weight_scale\w*)$"))
    assert is_slow(re.compile(r"(^|\.)rotary_emb\.inv.*$"))


@pytest.mark.parametrize("sort", [is_in_task_head, is_quantization_data, kind_of, counts_layers])
@pytest.mark.parametrize("piece", ["weight_scale", "quant_state\n", "w", "_", ".", "num_", "head."])
def test_kinds_of_names_are_told_in_no_time(sort: Callable[[str], object], piece: str) -> None:
    assert seconds(sort, piece * (LENGTH // len(piece)) + "!") < SECONDS


def test_names_are_sorted_as_before() -> None:
    heads = ("score.weight", "lm_head.weight", "m.qa_outputs.bias", "my_score.w", "classifier.0.w")
    assert all(map(is_in_task_head, heads))
    assert not any(
        map(is_in_task_head, ("scored.weight", "head", "model.layers.0.mlp.weight", "ascore.w"))
    )
    quantized = (
        "q.scales",
        "q.weight_scale_inv",
        "q.weight_scale_2",
        "q.absmax",
        "quant_state.nf4",
    )
    assert all(map(is_quantization_data, quantized))
    assert not any(map(is_quantization_data, ("q.weight", "q.weight_scale.x", "scaler")))
    counts = ("n_layer", "num_hidden_layers", "decoder_num_layers", "n_layers", "num_layers")
    assert all(map(counts_layers, counts))
    assert not any(map(counts_layers, ("layers", "numlayers", "num_layers_x", "player")))


def test_a_name_as_long_as_no_models_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "base", weights())
    save(tmp_path / "ft", {**weights(), "x" * LENGTH: torch.ones(2)})
    begun = time.perf_counter()
    with pytest.raises(DeltaLensError, match=r"its name has more than 1,000 characters") as refused:
        pair(tmp_path / "ft", tmp_path / "base")
    assert time.perf_counter() - begun < 5
    assert len(str(refused.value)) < 1_000
