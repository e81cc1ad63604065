"""Read parameter names: block, kind, what is ranked together, and which names a filter selects.

No torch here. Names are those of parameters (`model.layers.7.mlp.up_proj.weight`) or of layers,
which lack the last part (`model.layers.7.mlp.up_proj`).
"""

from deltalens.names.blocks import (
    Group,
    block_number,
    block_numbers,
    block_of,
    block_stacks,
    group_blocks,
    in_block,
    is_block,
    split_block,
)
from deltalens.names.filters import SCOPES, NameFilter, Scope, check_scope, unit_of
from deltalens.names.kinds import (
    Kind,
    is_adapted_token_weight,
    is_buffer,
    is_in_task_head,
    is_input_embedding,
    is_label_head,
    is_output_embedding,
    is_quantization_data,
    kind_of,
    may_be_output_embedding,
    may_change_rows,
    projection_of,
    unwrap_name,
)

__all__ = [
    "SCOPES",
    "Group",
    "Kind",
    "NameFilter",
    "Scope",
    "block_number",
    "block_numbers",
    "block_of",
    "block_stacks",
    "check_scope",
    "group_blocks",
    "in_block",
    "is_adapted_token_weight",
    "is_block",
    "is_buffer",
    "is_in_task_head",
    "is_input_embedding",
    "is_label_head",
    "is_output_embedding",
    "is_quantization_data",
    "kind_of",
    "may_be_output_embedding",
    "may_change_rows",
    "projection_of",
    "split_block",
    "unit_of",
    "unwrap_name",
]
