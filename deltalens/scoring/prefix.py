"""The prefix cache: skipping the first blocks of a model while they are unchanged.

If a model differs from a reference only from block l on, the input of block l is the reference's.
It is stored for every batch of the evaluation; in the forward passes of the model, blocks 0 to
l - 1 are skipped, and the stored states are passed on. The logits are the same, bit by bit.

In a sweep over layers, the reference is the fine-tune (some blocks are reverted to the base) or the
base (some blocks are the fine-tune's). Cells are measured from the first block to the last, and the
reference itself at the end: the input of block l' is computed from that of an earlier block l, by
running blocks l to l' - 1 only. Over L single blocks, near both references, this takes
2 L + 2 - (L - 1) forward passes' worth of blocks instead of 2 L + 2.

The input of only one block is stored at a time, in host memory: positions of the data, padding
included, x hidden size x bytes per number. Whether skipping leaves the logits unchanged is tested
on a short text before it is relied on (`Prefix._check`).
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
from deltalens.scoring.placement import input_device

__all__ = ["Prefix", "find_blocks"]


_PROBE = 16
"""Number of tokens on which skipping is tested."""


class _CannotSkipError(Exception):
    """A model's blocks cannot be skipped; the message says why."""


class _EnoughError(Exception):
    """Ends a forward pass once the output that was needed has been recorded."""


@dataclass
class _Call:
    """A forward pass of the evaluation: its inputs, and the output of its first blocks."""

    inputs: dict[str, Any]
    block: int = 0
    """Index of the block whose input is stored; 0: none."""
    states: Any = None
    """The input of that block, on the CPU; None: none is stored."""


def find_blocks(model: nn.Module, stacks: Iterable[str]) -> nn.ModuleList:
    """Find the list of a model's blocks.

    Args:
        model: the loaded model.
        stacks: names of the lists of blocks in its checkpoint, such as `model.layers`.

    Returns:
        The blocks.

    Raises:
        DeltaLensError: there is not exactly one such list, or blocks share weights.
    """
    stacks = sorted(stacks)
    if len(stacks) != 1:
        raise DeltaLensError(f"the model has several lists of blocks: {', '.join(stacks)}")
    lists = {
        id(module): module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and (f".{name}".endswith(f".{stacks[0]}") or f".{stacks[0]}".endswith(f".{name}"))
    }
    if len(lists) != 1:
        raise DeltaLensError(
            f"{type(model).__name__} has {len(lists)} lists of blocks called {stacks[0]!r}, not one"
        )
    blocks = next(iter(lists.values()))
    if _share_weights(model, blocks):
        raise DeltaLensError(f"blocks of {type(model).__name__} share weights")
    return blocks


def _share_weights(model: nn.Module, blocks: nn.ModuleList) -> bool:
    """Whether a weight of a block is also used by another block, or outside the blocks."""
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    parts = [list(block.parameters()) for block in blocks]
    parts.append([p for module in outside for p in module.parameters(recurse=False)])
    memory = [{p.untyped_storage().data_ptr() for p in part} for part in parts]
    return len(set().union(*memory)) < sum(map(len, memory))


class Prefix:
    """Stores the input of one block of a reference model, for every forward pass of an evaluation.

    The forward passes are learned during the first evaluation. The input of only one block is
    stored at a time, in host memory; `advance` computes it from the input of an earlier block, and
    no further. A forward pass runs through all blocks if it was not learned, if more than logits
    are requested of it, or if its states exceed `limit`.

    Args:
        model: the model.
        blocks: its blocks, from `find_blocks`.
        indices: indices of the blocks that `advance` will be called with.
        limit: number of bytes that may be stored.

    Attributes:
        block: index of the block whose input is stored; 0: none.
        refused: why no block is skipped; None if blocks can be skipped.
        bytes: number of bytes stored.
        most_bytes: the largest value of `bytes` so far.
        too_many: number of forward passes whose states exceed `limit`.
    """

    def __init__(
        self, model: nn.Module, blocks: nn.ModuleList, indices: Iterable[int], limit: int
    ) -> None:
        self.block = 0
        self.refused: str | None = None
        self.bytes = self.most_bytes = 0
        self.too_many = 0
        self._model, self._blocks, self._limit = model, blocks, limit
        self._originals, self._indices = list(blocks), sorted({*indices} - {0})
        self._calls: dict[Hashable, _Call] = {}
        self._learned = False
        self._checked = False

    def forget(self) -> None:
        """Discard what is stored, because the reference changes."""
        self.block = self.bytes = 0
        for call in self._calls.values():
            call.block, call.states = 0, None

    def advance(self, block: int) -> None:
        """Store the input of a block, while the model is the reference.

        Args:
            block: the block's index.
        """
        if self.refused is not None or block == self.block or not self._calls:
            return
        if block < self.block:
            self.forget()
        if block == 0:
            return
        try:
            with torch.inference_mode():
                if not self._checked:
                    self._check()
                self._record(block)
        except Exception as error:  # The model's code may raise anything.
            self.refused = str(error) or type(error).__name__
            self.forget()

    def _record(self, block: int) -> None:
        resumed, full = self.block > 0, False
        self.bytes = self.too_many = 0
        for call in self._calls.values():
            full = full or (resumed and call.states is None)
            if not full:
                (states,) = self._inputs_of([block], call)
                size = sum(tensor.nbytes for tensor in _tensors(states))
                full = self.bytes + size > self._limit
            call.block, call.states = (0, None) if full else (block, states)
            self.bytes += 0 if full else size
            self.too_many += full
            self.most_bytes = max(self.most_bytes, self.bytes)
        self.block = block

    def _inputs_of(self, blocks: Sequence[int], call: _Call) -> list[Any]:
        """The inputs of blocks (the outputs of the blocks before them) in ascending order, on the
        CPU."""
        recorders = [
            _Recorder(self._originals[block - 1], last=block == blocks[-1]) for block in blocks
        ]
        with self._skipping(call):
            for block, recorder in zip(blocks, recorders, strict=True):
                self._blocks[block - 1] = recorder
            try:
                self._model(**call.inputs)
            except _EnoughError:
                return [recorder.output for recorder in recorders]
        raise _CannotSkipError(f"a forward pass does not reach block {blocks[-1] - 1}")

    def _check(self) -> None:
        """Refuse a model whose logits for a short text change by a bit if blocks are skipped.

        A second text goes through the blocks afterwards: should a block leave something for a later
        one in addition to its output, that belongs to the second text when the block is skipped.
        """
        shortest = min(self._calls.values(), key=_size).inputs
        call, other = _Call(_probe(shortest)), _Call(_probe(shortest, backwards=True))
        expected = _logits(self._model(**call.inputs))
        inputs = self._inputs_of(self._indices, call)
        self._inputs_of(self._indices, other)
        # The last block first, since the blocks that are not skipped run on the first text again.
        for block, states in zip(self._indices[::-1], inputs[::-1], strict=True):
            skipping = _Call(call.inputs, block, states)
            with self._skipping(skipping):
                actual = _logits(self._model(**skipping.inputs))
            if not _same_bits(actual, expected):
                raise _CannotSkipError(
                    f"{type(self._model).__name__} returns different logits when its first {block} "
                    "blocks are skipped"
                )
        self._checked = True

    @contextmanager
    def evaluating(self, block: int, tell: Callable[[int, int], None]) -> Iterator[None]:
        """Skip blocks in the forward passes of an evaluation, or learn these on the first one.

        Args:
            block: index of the first block that differs from the reference.
            tell: called after each forward pass with the numbers of passes done and in total.

        Yields:
            None.
        """
        skip = 0 < block == self.block and self.refused is None
        learn, done = not self._learned, 0

        def before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            key = None if args else _key(model, kwargs)
            if key is None:
                return
            if learn:
                self._calls.setdefault(key, _Call(dict(kwargs)))
            call = self._calls.get(key)
            if skip and call is not None and call.states is not None:
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
                self.refused = "no forward pass requested logits only"
        finally:
            self._swap_out()
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _skipping(self, call: _Call) -> Iterator[None]:
        try:
            if call.block:
                self._swap_in(call)
            yield
        finally:
            self._swap_out()

    def _swap_in(self, call: _Call) -> None:
        # Copied, because the next block may write to its input.
        device = input_device(self._model)
        states = _mapped(lambda tensor: tensor.to(device, copy=True), call.states)
        for index in range(call.block):
            self._blocks[index] = _StandIn(self._originals[index], states)

    def _swap_out(self) -> None:
        for index, block in enumerate(self._originals):
            self._blocks[index] = block


class _StandIn(nn.Module):
    """Replaces a block by a constant output. It has the block's attributes, but not its weights."""

    def __init__(self, block: nn.Module, output: Any = None) -> None:
        super().__init__()
        # Not registered as a child, which would add the block's weights to the model once more.
        self.__dict__ |= {"stands_for": block, "output": output}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stands_for"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


class _Recorder(_StandIn):
    """Runs the block and stores its output; the last recorder then ends the forward pass."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__(block)
        self.__dict__["last"] = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.stands_for(*args, **kwargs)
        # Copied if the forward pass continues, because the next block may write to its input.
        copied = _mapped(lambda tensor: tensor.to("cpu", copy=not self.last), output)
        self.__dict__["output"] = copied
        if self.last:
            raise _EnoughError
        return output


def _key(model: nn.Module, kwargs: Mapping[str, Any]) -> Hashable:
    """What identifies a forward pass: its inputs, bit by bit. None if no block may be skipped."""
    config = getattr(model, "config", None)
    further_outputs = ["output_hidden_states", "output_attentions"]
    # A model that cannot generate has no cache, whatever its configuration says.
    further_outputs += ["use_cache"] if can_generate(model) or "use_cache" in kwargs else []
    if any(kwargs.get(name, getattr(config, name, False)) for name in further_outputs):
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
    """The first tokens of the first row of a forward pass; optionally in reverse order."""
    probe = {
        name: value[:1, :_PROBE] if isinstance(value, Tensor) and value.dim() == 2 else value
        for name, value in inputs.items()
    }
    if backwards:
        probe = {n: v.flip(-1) if n == "input_ids" else v for n, v in probe.items()}
    return probe


def _size(call: _Call) -> int:
    return max((x.numel() for x in call.inputs.values() if isinstance(x, Tensor)), default=0)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise _CannotSkipError("the model returns no logits")
    return logits


def _mapped(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output)
    if output is None:
        return None
    if type(output) in (tuple, list):
        return type(output)(_mapped(function, part) for part in output)
    raise _CannotSkipError(f"a block returns a {type(output).__name__}")


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output:
            yield from _tensors(part)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
