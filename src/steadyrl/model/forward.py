"""The training engine's forward: packed positions in, log-probabilities of the response tokens out."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.model.attention import attends_by_block, packed_row
from steadyrl.model.loading import decoder_of, head_of
from steadyrl.model.logprobs import token_logprobs
from steadyrl.types import TokenBatch


def feed(model: PreTrainedModel, batch: TokenBatch) -> dict[str, Any]:
    """Arguments of a forward over a micro-batch: one row of blocks, or one block with a row for each sequence."""
    if attends_by_block(model):
        return packed_row(batch)
    (shape,) = batch.blocks
    return {"input_ids": batch.input_ids.view(shape), "position_ids": batch.position_ids.view(shape)}


def response_logprobs(
    model: PreTrainedModel, batch: TokenBatch, *, temperature: float
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """log π(y_t) of every response token and the entropy of the distribution it comes from, at `temperature`.

    The output projection runs at the response positions only. Run it inside `record` or `replay` to watch or fix
    the experts.
    """
    hidden = decoder_of(model)(**feed(model, batch), use_cache=False).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, batch.predicting)  # indexing would sum gradients in any order
    return token_logprobs(chosen, head_of(model), batch.targets, temperature=temperature)
