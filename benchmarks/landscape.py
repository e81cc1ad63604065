"""What a point of a loss landscape costs, beside `loss_landscapes` and a plain loop."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from deltalens.io.checkpoint import open_checkpoint
from deltalens.numerics.workers import workers
from deltalens.studies.landscape.directions import random_directions
from deltalens.studies.landscape.grid import Axis, Point, coarse_to_fine
from deltalens.studies.live import LiveTensors
from deltalens.studies.slots import slots_of_checkpoint
from deltalens.studies.weights import StoredWeights

TURNS = 150
PEER_ROUNDS = 10
PEER_STEPS = 3
GRID = 25


def run() -> None:
    """A 38 M Llama in fp32, 512 tokens a forward: a bare forward, a point of a 25 x 25 scan in its
    own order (origin re-read from its files, rows formed on the way) and a point of the plain loop
    in turn, from all parts of the scan; every few turns, points of the other peer.

    A line each: what a point costs in bare forwards, from the medians of its parts (on a busy
    machine an outlier is as long as a hundred moves). A row counts as often as the whole scan forms
    one.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1728,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    ).eval()
    batch = torch.randint(0, 8192, (4, 128))

    def loss() -> float:
        with torch.inference_mode():
            logits = model(input_ids=batch, use_cache=False).logits
            return float(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), _next(batch)))

    with tempfile.TemporaryDirectory(prefix="deltalens-bench-") as folder:
        model.save_pretrained(folder)
        checkpoint = open_checkpoint(folder)
        origin = StoredWeights.of(checkpoint)
        slots = slots_of_checkpoint(model, checkpoint, {}, ())
        with workers() as mapper:
            directions = random_directions(origin, slots, 2, 0, "filter", mapper)
        moved = {keep: LiveTensors(slots, origin) for keep in (True, False)}
        for keep, live in moved.items():
            live.span(directions, keep=keep)
        order = list(itertools.chain(*coarse_to_fine([Axis(-1, 1, GRID)] * 2)))
        foreach = _foreach(model)
        spent: dict[str, list[float]] = {}

        def timed(name: str, function: Callable[[], object]) -> None:
            begun = time.perf_counter()
            function()
            spent.setdefault(name, []).append(time.perf_counter() - begun)

        for turn, place in enumerate(range(1, len(order), len(order) // TURNS)):
            moved[True].move(*order[place - 1])
            moves = "move" if order[place].a == order[place - 1].a else "row and move"
            loss()
            timed("forward", loss)
            timed(moves, functools.partial(moved[True].move, *order[place]))
            timed("forward after", loss)
            timed("foreach", lambda at=order[place]: (foreach(at), loss()))
            if turn % (TURNS // PEER_ROUNDS) == 0:
                spent.setdefault("loss-landscapes", []).extend(_loss_landscapes(model, loss))
        timed("low-memory", lambda: (moved[False].move(*order[0]), loss()))
        moved[False].restore()
    typical = {name: statistics.median(seconds) for name, seconds in spent.items()}
    rows = sum(one.a != other.a for one, other in itertools.pairwise(order)) / len(order)
    move = typical["move"] + rows * (typical["row and move"] - typical["move"])
    report("deltalens", move + typical["forward after"], spent, rows=round(rows, 3), move=move)
    for name in ("foreach", "loss-landscapes", "low-memory"):
        report(name, typical[name], spent)


def _next(batch: Tensor) -> Tensor:
    return batch[:, 1:].flatten()


def _foreach(model: nn.Module) -> Callable[[Point], None]:
    """The plain way: every point from a copy of the origin, with torch's multi-tensor kernels."""
    live = list(model.parameters())
    origin = [parameter.detach().clone() for parameter in live]
    first, second = ([torch.randn_like(tensor) for tensor in origin] for _ in range(2))

    @torch.no_grad()
    def move(point: Point) -> None:
        torch._foreach_copy_(live, origin)
        torch._foreach_add_(live, first, alpha=1e-3 * point.a)
        torch._foreach_add_(live, second, alpha=1e-3 * point.b)

    return move


def _loss_landscapes(model: nn.Module, loss: Callable[[], float]) -> list[float]:
    """Seconds of each point of `loss_landscapes.random_plane` but the first: the making of its
    directions does not count."""
    import loss_landscapes
    from loss_landscapes.metrics import Metric

    ends: list[float] = []

    class Loss(Metric):  # type: ignore[misc]
        def __call__(self, wrapped: Any) -> float:
            found = loss()
            ends.append(time.perf_counter())
            return found

    # Per layer: its loop over filters takes far longer than its points, and does not count.
    loss_landscapes.random_plane(model, Loss(), distance=1, steps=PEER_STEPS, normalization="layer")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return [after - before for before, after in itertools.pairwise(ends)]


def report(name: str, point: float, spent: Mapping[str, Sequence[float]], **more: float) -> None:
    """Print one JSON line: a point's cost in seconds and in bare forwards, and how far single
    forwards spread (10th to 90th percentile)."""
    forwards = sorted(spent["forward"])
    line = {
        "name": f"landscape-point-{name}",
        "forwards": round(point / statistics.median(forwards), 3),
        "seconds": round(point, 4),
        "forward": round(statistics.median(forwards), 4),
        "forward_p10_p90": [round(forwards[int(q * (len(forwards) - 1))], 4) for q in (0.1, 0.9)],
        "points": len(spent.get(name, spent["forward"])),
        **{part: round(value, 4) for part, value in more.items()},
    }
    print(json.dumps(line), flush=True)
