"""Chosen entries of a product of two tall matrices: the gradient of a weight where it is trained.

The dense product of a linear layer's backward pass costs as much as its forward pass. Where few
entries are wanted, each of them is one dot product over the tokens.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Places", "TurnedColumns", "sampled_product"]

_TOKENS = 2048
"""Tokens whose columns are laid out at a time."""
_SPARSE = 1 / 6
"""The density up to which single dot products beat the dense product on a CPU."""
_ROWS = 1024
"""Rows of the dense product that exist at a time."""


@dataclass(frozen=True)
class Places:
    """Which entries of a matrix of R rows and C columns are chosen."""

    shape: tuple[int, int]
    """R and C."""
    columns: Tensor
    """The column of each entry, row by row and ascending, each once: int32, (k,)."""
    ends: Tensor
    """How many entries come before each row, and in all: int32, (R + 1,)."""

    @classmethod
    def of(cls, shape: tuple[int, int], flat: Tensor) -> Places:
        """Make the places from flat indices.

        Args:
            shape: R and C.
            flat: ascending flat indices r * C + c, each once; any integer dtype and device.

        Returns:
            The places, on that device.
        """
        wide = flat.to(torch.int64)
        starts = torch.arange(shape[0] + 1, device=flat.device) * shape[1]
        ends = torch.searchsorted(wide, starts)
        return cls(shape, (wide % shape[1]).to(torch.int32), ends.to(torch.int32))

    def __len__(self) -> int:
        return self.columns.numel()

    @property
    def flat(self) -> Tensor:
        """The ascending flat indices, int64, (k,); made anew at each call."""
        rows = torch.arange(self.shape[0], device=self.columns.device)
        rows = rows.repeat_interleave(self.ends.diff(), output_size=len(self))
        return rows * self.shape[1] + self.columns

    @property
    def nbytes(self) -> int:
        """Their memory, in bytes."""
        return self.columns.nbytes + self.ends.nbytes

    def to(self, device: torch.device) -> Places:
        """The same places on a device.

        Args:
            device: where they are needed.

        Returns:
            Itself if they are there already.
        """
        if self.columns.device == device:
            return self
        return Places(self.shape, self.columns.to(device), self.ends.to(device))


class TurnedColumns:
    """The columns of a matrix as rows, kept for the next product with the same matrix.

    Layers that read one input (query, key and value; gate and up) each take a product with it.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] | None = None
        self._rows: tuple[Tensor, ...] = ()

    def rows(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """Lay out the columns, unless they are from the last call.

        Args:
            matrix: (T, C); it and its columns are kept until `clear` or another matrix.
            dtype: of the rows.

        Returns:
            (C, T), contiguous.
        """
        key = (matrix.data_ptr(), matrix._version, matrix.shape, matrix.stride(), dtype)
        if key != self._of:
            # The matrix is kept, so that no other one can come to lie where it does.
            self._of, self._rows = key, (_turned(matrix, dtype), matrix)
        return self._rows[0]

    def clear(self) -> None:
        """Forget the matrix."""
        self._of, self._rows = None, ()

    def __reduce__(self) -> tuple[type[TurnedColumns], tuple[()]]:
        # A copy starts empty.
        return TurnedColumns, ()


def _turned(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(matrix.shape[::-1], dtype=dtype).copy_(matrix.t())


def sampled_product(
    left: Tensor,
    right: Tensor,
    places: Places,
    kept: tuple[TurnedColumns | None, TurnedColumns | None] = (None, None),
) -> Tensor:
    """Compute entries of left^T right.

    Args:
        left: (T, R), any floating-point dtype.
        right: (T, C), on the same device.
        places: which entries, on that device too.
        kept: for each of the two, where its columns are kept, if products with it follow.

    Returns:
        (k,), in the order of the places; fp64 if an operand is, else fp32. Sums are taken in that
        dtype on a CPU; on an accelerator the dense product of the operands' dtype is sampled.
    """
    wide = torch.float64 in (left.dtype, right.dtype)
    dtype = torch.float64 if wide else torch.float32
    if torch.compiler.is_compiling():
        # What a compiler traces can have no sparse matrix, and no sizes that depend on data.
        product = left.to(dtype).t() @ right.to(dtype)
        return product.reshape(-1)[places.flat]
    if left.device.type != "cpu" or len(places) > _SPARSE * places.shape[0] * places.shape[1]:
        return _sampled_dense(left, right, places, dtype)
    values = torch.zeros(len(places), dtype=dtype)
    for start in range(0, left.shape[0] if len(places) else 0, _TOKENS):
        # Columns as rows, each in one piece of memory: what torch's loop reads, and would copy.
        parts = [side[start : start + _TOKENS] for side in (left, right)]
        lefts, rights = (
            _turned(part, dtype) if columns is None else columns.rows(part, dtype)
            for part, columns in zip(parts, kept, strict=True)
        )
        values = torch.sparse.sampled_addmm(_matrix(places, values), lefts, rights.t()).values()
    return values


def _matrix(places: Places, values: Tensor) -> Tensor:
    _let_torch_say_beta()
    return torch.sparse_csr_tensor(
        places.ends, places.columns, values, places.shape, check_invariants=False
    )


@functools.cache
def _let_torch_say_beta() -> None:
    """torch warns once per process that its sparse matrices are beta: let it, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = torch.zeros(2, dtype=torch.int32)
        torch.sparse_csr_tensor(ends, ends[:0], torch.zeros(0), (1, 1), check_invariants=False)


def _sampled_dense(left: Tensor, right: Tensor, places: Places, dtype: torch.dtype) -> Tensor:
    """The dense product, some rows at a time, of which the entries are taken."""
    common = torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(common), right.to(common)
    (rows, columns), flat = places.shape, places.flat
    values = torch.empty(len(places), dtype=dtype, device=left.device)
    # One transfer: where the entries of each piece of rows begin.
    pieces = [*range(0, rows, _ROWS), rows]
    ends = places.ends[pieces].tolist()
    for index, start in enumerate(pieces[:-1]):
        begin, end = ends[index], ends[index + 1]
        if begin < end:
            product = left[:, start : pieces[index + 1]].t() @ right
            values[begin:end] = product.view(-1)[flat[begin:end] - start * columns]
    return values
