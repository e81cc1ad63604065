"""What a point of a loss landscape costs, beside `loss_landscapes` and a plain loop."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from deltalens.io.checkpoint import open_checkpoint
from deltalens.numerics.workers import workers
from deltalens.studies.landscape.directions import random_directions
from deltalens.studies.landscape.grid import Axis, Point, coarse_to_fine
from deltalens.studies.landscape.moving import MovedModel
from deltalens.studies.landscape.slots import slots_of_checkpoint
from deltalens.studies.landscape.weights import StoredWeights

ROUNDS = 15
POINTS = 10
PEER_STEPS = 3
GRID = 25


def run() -> None:
    """A 38 M Llama in fp32, 512 tokens a forward: rounds of bare forwards, of points of a 25 x 25
    scan in its own order (origin re-read from its files, rows formed on the way), and of the peers'
    points, in turn. The rounds' points lie evenly over the whole scan: its coarse beginning forms a
    row every few points, its end one in twenty-five. A line each: a point's cost in forwards of the
    same round.
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
        with workers() as each:
            directions = random_directions(origin, slots, 2, 0, "filter", each)
        moved = {keep: MovedModel(slots, origin, directions, keep=keep) for keep in (True, False)}
        order = list(itertools.chain(*coarse_to_fine([Axis(-1, 1, GRID)] * 2)))
        contestants: dict[str, Callable[[Sequence[Point]], float]] = {
            "forward": lambda points: _timed(points, lambda point: None, loss),
            "deltalens": lambda points: _timed(points, moved[True].move, loss),
            "foreach": _foreach(model, loss),
            "loss-landscapes": lambda points: _loss_landscapes(model, loss),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn, points in enumerate([order[:POINTS], *_spread(order)]):
            for name, contestant in contestants.items():
                spent = contestant(points)
                moved[True].restore()
                if turn:
                    seconds[name].append(spent)
        low = _timed(order[:2], moved[False].move, loss)
        moved[False].restore()
    for name in contestants:
        report(name, seconds[name], seconds["forward"])
    report("deltalens-low-memory", [low], [statistics.median(seconds["forward"])])


def _next(batch: Tensor) -> Tensor:
    return batch[:, 1:].flatten()


def _spread(order: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """A round's points each, from the middle of equal parts of the scan."""
    part = len(order) / ROUNDS
    for turn in range(ROUNDS):
        start = int((turn + 0.5) * part - POINTS / 2)
        yield order[start : start + POINTS]


def _timed(
    points: Sequence[Point], move: Callable[[Point], None], loss: Callable[[], float]
) -> float:
    """Seconds a point."""
    begun = time.perf_counter()
    for point in points:
        move(point)
        loss()
    return (time.perf_counter() - begun) / len(points)


def _foreach(model: nn.Module, loss: Callable[[], float]) -> Callable[[Sequence[Point]], float]:
    """The plain way: every point from a copy of the origin, with torch's multi-tensor kernels."""
    live = list(model.parameters())
    origin = [parameter.detach().clone() for parameter in live]
    first, second = ([torch.randn_like(tensor) for tensor in origin] for _ in range(2))

    @torch.no_grad()
    def move(point: Point) -> None:
        torch._foreach_copy_(live, origin)
        torch._foreach_add_(live, first, alpha=1e-3 * point.a)
        torch._foreach_add_(live, second, alpha=1e-3 * point.b)

    return lambda points: _timed(points, move, loss)


def _loss_landscapes(model: nn.Module, loss: Callable[[], float]) -> float:
    """Seconds a point of `loss_landscapes.random_plane`, from its second point on: the making of
    its directions does not count."""
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
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def report(name: str, spent: Sequence[float], forward: Sequence[float]) -> None:
    """Print one JSON line: a point's cost in forwards, round by round."""
    shares = sorted(own / bare for own, bare in zip(spent, forward, strict=True))
    line = {
        "name": f"landscape-point-{name}",
        "seconds": round(statistics.median(spent), 4),
        "forward": round(statistics.median(forward), 4),
        "forwards": round(statistics.median(shares), 3),
        "forwards_p10_p90": [round(shares[int(q * (len(shares) - 1))], 3) for q in (0.1, 0.9)],
    }
    print(json.dumps(line), flush=True)
