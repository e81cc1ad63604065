"""Chosen entries of a product of two tall matrices: the gradient of a weight where it is trained.

The dense product of a linear layer's backward pass costs as much as its forward pass. Where few
entries are wanted, each of them is one dot product over the tokens; and what salience chooses lies
in few rows and columns, so that most of the two matrices is never read.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Places", "TurnedColumns", "sampled_product", "take_columns"]

_TOKENS = 2048
"""Tokens whose columns are laid out at a time."""
_SPARSE = 1 / 6
"""The density, in the rows and columns that have entries, up to which single dot products beat the
dense product on a CPU."""
_FEW = 1 / 2
"""The share of rows or columns with entries up to which they are picked out."""
_BAND = 16
"""Columns of a band: one cache line of fp32."""
_ROWS = 1024
"""Rows of the dense product that exist at a time."""


@dataclass(frozen=True)
class Places:
    """Which entries of a matrix of R rows and C columns are chosen.

    Rows and columns without any entry are left out of account where they are at least half of all:
    there are R' rows and C' columns with entries then, and R' = R or C' = C otherwise.
    """

    shape: tuple[int, int]
    """R and C."""
    rows: Tensor | None
    """The rows with entries, ascending: int32, (R',); None: all are taken."""
    columns: Tensor | None
    """The columns with entries, ascending: int32, (C',); None: all are taken."""
    entries: Tensor
    """The column of each entry among the C', row by row and ascending, each once: int32, (k,)."""
    ends: Tensor
    """How many entries come before each of the R' rows, and in all: int32, (R' + 1,)."""

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
        counts = torch.bincount(wide // shape[1], minlength=shape[0])
        rows = _few(counts.nonzero().view(-1), shape[0])
        if rows is not None:
            counts = counts[rows]
        entries = wide % shape[1]
        present, among = entries.unique(return_inverse=True)
        columns = _few(present, shape[1])
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        entries = entries if columns is None else among
        return cls(shape, rows, columns, entries.to(torch.int32), ends.to(torch.int32))

    def __len__(self) -> int:
        return self.entries.numel()

    @property
    def flat(self) -> Tensor:
        """The ascending flat indices, int64, (k,); made anew at each call."""
        rows, columns = self.rows, self.entries
        if rows is None:
            rows = torch.arange(self.shape[0], device=columns.device)
        if self.columns is not None:
            columns = self.columns[columns]
        rows = rows.to(torch.int64).repeat_interleave(self.ends.diff(), output_size=len(self))
        return rows * self.shape[1] + columns

    @property
    def compact(self) -> tuple[int, int]:
        """R' and C'."""
        columns = self.shape[1] if self.columns is None else self.columns.numel()
        return self.ends.numel() - 1, columns

    @property
    def nbytes(self) -> int:
        """Their memory, in bytes."""
        kept = (self.rows, self.columns, self.entries, self.ends)
        return sum(part.nbytes for part in kept if part is not None)

    def to(self, device: torch.device) -> Places:
        """The same places on a device.

        Args:
            device: where they are needed.

        Returns:
            Itself if they are there already.
        """
        if self.entries.device == device:
            return self
        rows, columns = (
            None if part is None else part.to(device) for part in (self.rows, self.columns)
        )
        return Places(self.shape, rows, columns, self.entries.to(device), self.ends.to(device))


def _few(present: Tensor, of: int) -> Tensor | None:
    return present.to(torch.int32) if present.numel() <= _FEW * of else None


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
    """The columns as rows, each in one piece of memory."""
    if matrix.t().is_contiguous():
        return matrix.t().to(dtype)
    tokens, columns = matrix.shape
    if columns % _BAND or not matrix.is_contiguous():
        return torch.empty(matrix.shape[::-1], dtype=dtype).copy_(matrix.t())
    # First bands, whose every read and write is a whole cache line, then columns: out of the cache
    # it takes half the time of one transposing copy.
    bands = matrix.to(dtype).view(tokens, -1, _BAND).transpose(0, 1).contiguous()
    return bands.transpose(1, 2).reshape(columns, tokens)


def take_columns(matrix: Tensor, columns: Tensor) -> Tensor:
    """Pick columns out of a matrix.

    Args:
        matrix: (T, C).
        columns: which, int32, (C',).

    Returns:
        (T, C'), each column in one piece of memory, as `sampled_product` reads them.
    """
    return matrix.t().index_select(0, columns).t()


def sampled_product(
    left: Tensor,
    right: Tensor,
    places: Places,
    kept: tuple[TurnedColumns | None, TurnedColumns | None] = (None, None),
) -> Tensor:
    """Compute entries of left^T right.

    Args:
        left: (T, R), any floating-point dtype; or of the places' rows, (T, R').
        right: (T, C), on the same device; or of the places' columns, (T, C').
        places: which entries, on that device too.
        kept: for each of the two, where its columns are kept, if products with all of it follow.

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
    if not len(places):
        return torch.zeros(0, dtype=dtype, device=left.device)
    if places.rows is not None:
        left, kept = _only(left, places.rows), (None, kept[1])
    if places.columns is not None:
        right, kept = _only(right, places.columns), (kept[0], None)
    rows, columns = places.compact
    if left.device.type != "cpu" or len(places) > _SPARSE * rows * columns:
        return _sampled_dense(left, right, places, dtype)
    values = torch.zeros(len(places), dtype=dtype)
    for start in range(0, left.shape[0], _TOKENS):
        # Columns as rows, each in one piece of memory: what torch's loop reads, and would copy.
        parts = [side[start : start + _TOKENS] for side in (left, right)]
        lefts, rights = (
            _turned(part, dtype) if turned is None else turned.rows(part, dtype)
            for part, turned in zip(parts, kept, strict=True)
        )
        values = torch.sparse.sampled_addmm(_matrix(places, values), lefts, rights.t()).values()
    return values


def _only(matrix: Tensor, columns: Tensor) -> Tensor:
    return matrix if matrix.shape[1] == columns.numel() else take_columns(matrix, columns)


def _matrix(places: Places, values: Tensor) -> Tensor:
    _let_torch_say_beta()
    return torch.sparse_csr_tensor(
        places.ends, places.entries, values, places.compact, check_invariants=False
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
    common = dtype if left.device.type == "cpu" else torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(common), right.to(common)
    rows, columns = places.compact
    row = torch.arange(rows, device=left.device)
    flat = row.repeat_interleave(places.ends.diff(), output_size=len(places)) * columns
    flat += places.entries
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
