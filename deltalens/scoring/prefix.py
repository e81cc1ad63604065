"""Not computing again what has not changed: the first blocks of a model, replayed.

Where only the blocks from the n-th on differ from a reference model, what enters the n-th block is
the reference's. It is kept for every batch, and the blocks before are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.scoring.file_scoring import can_generate

__all__ = ["Prefix", "find_blocks"]


_PROBE = 16
"""Tokens on which a replay is tried."""


class _CannotReplayError(Exception):
    """Why a model's blocks cannot be passed over."""


class _EnoughError(Exception):
    """The output that was wanted is there; the rest of the forward is not needed."""


@dataclass
class _Call:
    """One forward of the evaluation: its inputs, and what its first blocks put out."""

    inputs: dict[str, Any]
    place: int = 0
    """Of the block that what is held enters."""
    held: Any = None


def find_blocks(model: nn.Module, stacks: Iterable[str]) -> nn.ModuleList:
    """The list of blocks that a model goes through.

    Args:
        model: loaded.
        stacks: the names of its lists of blocks, as its checkpoint has them (`model.layers`).

    Raises:
        DeltaLensError: there is not exactly one such list, or blocks share weights.
    """
    stacks = sorted(stacks)
    if len(stacks) != 1:
        raise DeltaLensError(f"the model has several lists of blocks: {', '.join(stacks)}")
    found = {
        id(module): module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and (f".{name}".endswith(f".{stacks[0]}") or f".{stacks[0]}".endswith(f".{name}"))
    }
    if len(found) != 1:
        raise DeltaLensError(f"{type(model).__name__} has no one list of blocks {stacks[0]!r}")
    blocks = next(iter(found.values()))
    if _shared(model, blocks):
        raise DeltaLensError(f"blocks of {type(model).__name__} share weights")
    return blocks


def _shared(model: nn.Module, blocks: nn.ModuleList) -> bool:
    """Whether a weight of one block is another block's too, or is used outside the blocks."""
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    parts = [list(block.parameters()) for block in blocks]
    parts.append([p for module in outside for p in module.parameters(recurse=False)])
    memory = [{p.untyped_storage().data_ptr() for p in part} for part in parts]
    return len(set().union(*memory)) < sum(map(len, memory))


class Prefix:
    """What enters one block of a reference model, for every forward of an evaluation.

    The forwards are learned when the first evaluation is watched. Only one block's inputs are held
    at a time, in host memory: `advance` computes them from the ones before, and goes no further
    than the block. A forward that was not learned, that is asked for more than logits, or whose
    states would not fit into `limit`, runs in full.

    Args:
        model: with its blocks in place.
        blocks: as `find_blocks` finds them.
        places: of the blocks that `advance` will be asked for.
        limit: bytes that may be held.
    """

    def __init__(
        self, model: nn.Module, blocks: nn.ModuleList, places: Iterable[int], limit: int
    ) -> None:
        self.place = 0
        """Of the block whose inputs are held; 0: nothing is."""
        self.refused: str | None = None
        """Why everything runs in full; None where it does not."""
        self.bytes = self.most_bytes = 0
        """Held now, and at most so far."""
        self.too_many = 0
        """Forwards that run in full because their states would not fit."""
        self._model, self._blocks, self._limit = model, blocks, limit
        self._own, self._places = list(blocks), sorted({*places} - {0})
        self._calls: dict[Hashable, _Call] = {}
        self._learned = False
        self._checked = False

    def forget(self) -> None:
        """The reference is another from now on."""
        self.place = self.bytes = 0
        for call in self._calls.values():
            call.place, call.held = 0, None

    def advance(self, place: int) -> None:
        """Hold what enters the block at this place; the model is the reference now."""
        if self.refused is not None or place == self.place or not self._calls:
            return
        if place < self.place:
            self.forget()
        if place == 0:
            return
        try:
            with torch.inference_mode():
                if not self._checked:
                    self._check()
                self._record(place)
        except Exception as error:  # Of a model's code, which promises no kind.
            self.refused = str(error) or type(error).__name__
            self.forget()

    def _record(self, place: int) -> None:
        begun, full = self.place > 0, False
        self.bytes = self.too_many = 0
        for call in self._calls.values():
            full = full or (begun and call.held is None)
            if not full:
                (states,) = self._outputs_before([place], call)
                size = sum(tensor.nbytes for tensor in _tensors(states))
                full = self.bytes + size > self._limit
            call.place, call.held = (0, None) if full else (place, states)
            self.bytes += 0 if full else size
            self.too_many += full
            self.most_bytes = max(self.most_bytes, self.bytes)
        self.place = place

    def _outputs_before(self, places: Sequence[int], call: _Call) -> list[Any]:
        """What the blocks before these places, from low to high, put out, on the CPU."""
        recorders = [_Recorder(self._own[place - 1], last=place == places[-1]) for place in places]
        with self._passing_over(call):
            for place, recorder in zip(places, recorders, strict=True):
                self._blocks[place - 1] = recorder
            try:
                self._model(**call.inputs)
            except _EnoughError:
                return [recorder.output for recorder in recorders]
        raise _CannotReplayError(f"a forward does not come to block {places[-1] - 1}")

    def _check(self) -> None:
        """A short text, replayed at every place, gives the model's logits to the last bit.

        Another text is held along with it, and goes through the blocks last: what a block keeps for
        a later one, beside its output, is that text's whenever the block is passed over.
        """
        shortest = min(self._calls.values(), key=_size).inputs
        call, other = _Call(_probe(shortest)), _Call(_probe(shortest, backwards=True))
        wanted = _logits(self._model(**call.inputs))
        held = self._outputs_before(self._places, call)
        self._outputs_before(self._places, other)
        # The last place first: a replay goes through the blocks that it does not pass over.
        for place, states in zip(self._places[::-1], held[::-1], strict=True):
            one = _Call(call.inputs, place, states)
            with self._passing_over(one):
                found = _logits(self._model(**one.inputs))
            if not _same_bits(found, wanted):
                raise _CannotReplayError(
                    f"{type(self._model).__name__} gives other logits when its first {one.place} "
                    "blocks are passed over"
                )
        self._checked = True

    @contextmanager
    def evaluating(self, place: int, tell: Callable[[int, int], None]) -> Iterator[None]:
        """Within, forwards are learned or replayed.

        Args:
            place: of the first block that differs from the reference.
            tell: told after each forward: how many are done, of how many.
        """
        replay = 0 < place == self.place and self.refused is None
        learn, done = not self._learned, 0

        def before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            key = None if args else _key(model, kwargs)
            if key is None:
                return
            if learn:
                self._calls.setdefault(key, _Call(dict(kwargs)))
            call = self._calls.get(key)
            if replay and call is not None and call.held is not None:
                self._swap_in(call)

        def after(model: nn.Module, args: Any, output: Any) -> None:
            nonlocal done
            self._swap_out()
            done += 1
            if not learn:
                tell(min(done, len(self._calls)), len(self._calls))

        hooks = [
            self._model.register_forward_pre_hook(before, with_kwargs=True),
            self._model.register_forward_hook(after),
        ]
        try:
            yield
            self._learned = True
            if not self._calls:
                self.refused = "no forward was seen that asks for logits alone"
        finally:
            self._swap_out()
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _passing_over(self, call: _Call) -> Iterator[None]:
        try:
            if call.place:
                self._swap_in(call)
            yield
        finally:
            self._swap_out()

    def _swap_in(self, call: _Call) -> None:
        # A copy: the next block may write into what it is given.
        device = next(self._model.parameters()).device
        states = _mapped(lambda tensor: tensor.to(device, copy=True), call.held)
        for place in range(call.place):
            self._blocks[place] = _StandIn(self._own[place], states)

    def _swap_out(self) -> None:
        for place, block in enumerate(self._own):
            self._blocks[place] = block


class _StandIn(nn.Module):
    """Puts out the same whatever it is given. It has the attributes of the block that it stands
    for, and none of its weights."""

    def __init__(self, block: nn.Module, output: Any = None) -> None:
        super().__init__()
        # Not as a child: a block's place must not change what is found in the model.
        self.__dict__ |= {"stands_for": block, "output": output}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stands_for"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


class _Recorder(_StandIn):
    """The block itself; its output is kept, and the last one's ends the forward."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__(block)
        self.__dict__["last"] = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.stands_for(*args, **kwargs)
        # A copy where the forward goes on: the next block may write into what it is given.
        kept = _mapped(lambda tensor: tensor.to("cpu", copy=not self.last), output)
        self.__dict__["output"] = kept
        if self.last:
            raise _EnoughError
        return output


def _key(model: nn.Module, kwargs: Mapping[str, Any]) -> Hashable:
    """What a forward is known by: its inputs, to the last bit. None if it has to run in full."""
    config = getattr(model, "config", None)
    more = ["output_hidden_states", "output_attentions"]
    # What cannot generate has no cache, whatever its configuration says.
    more += ["use_cache"] if can_generate(model) or "use_cache" in kwargs else []
    if any(kwargs.get(name, getattr(config, name, False)) for name in more):
        return None
    parts: list[Hashable] = []
    for name, value in sorted(kwargs.items()):
        if isinstance(value, Tensor) and not value.is_floating_point():
            raw = value.detach().cpu().contiguous().numpy().tobytes()
            parts.append((name, str(value.dtype), tuple(value.shape), raw))
        elif value is None or isinstance(value, (bool, int)):
            parts.append((name, value))
        else:
            return None
    return tuple(parts)


def _probe(inputs: Mapping[str, Any], backwards: bool = False) -> dict[str, Any]:
    """The first tokens of a forward's first row; or the same tokens in the opposite order."""
    made = {
        name: value[:1, :_PROBE] if isinstance(value, Tensor) and value.dim() == 2 else value
        for name, value in inputs.items()
    }
    if backwards:
        made = {n: v.flip(-1) if n == "input_ids" else v for n, v in made.items()}
    return made


def _size(call: _Call) -> int:
    return max((x.numel() for x in call.inputs.values() if isinstance(x, Tensor)), default=0)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise _CannotReplayError("the model gives no logits")
    return logits


def _mapped(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output)
    if output is None:
        return None
    if type(output) in (tuple, list):
        return type(output)(_mapped(function, part) for part in output)
    raise _CannotReplayError(f"a block puts out a {type(output).__name__}")


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output:
            yield from _tensors(part)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
