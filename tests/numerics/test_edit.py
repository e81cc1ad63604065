"""What is put back comes from the base, everything else from the fine-tune."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalens.numerics.edit import revert_to_base
from tests.support.oracles.pairs import KINDS, as_bits, make, same_bits
from tests.support.profile import repeatable
from tests.support.selecting import dtypes

pytestmark = [pytest.mark.property, pytest.mark.oracle]


@dtypes
@repeatable(25)
@given(kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)), n=st.integers(0, 50))
def test_put_back_takes_every_entry_from_one_or_the_other(
    dtype: torch.dtype, kinds: tuple[str, str], n: int
) -> None:
    ft, base = make(kinds[0], n, dtype, 1), make(kinds[1], n, dtype, 2)
    mask = torch.from_numpy(np.random.default_rng(3).random(n) < 0.5)
    wanted = torch.where(mask, as_bits(base), as_bits(ft)).view(dtype)
    assert same_bits(revert_to_base(ft, base, mask), wanted)
    out = ft.clone()
    assert revert_to_base(out, base, mask, out=out) is out
    assert same_bits(out, wanted)
