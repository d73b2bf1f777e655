"""What weights cost, as they are or quantised: held-out loss and bytes of a model."""

import math

from gptjax.evaluation.perplexity import bits_per_byte, heldout_rows, mean_loss
from gptjax.models.functional import leaf_at, linear_maps
from gptjax.models.quantization import tree_bytes
from gptjax.stages.handover import TrainedModel


def weight_figures(
    model: TrainedModel, texts: list[str], sum_loss, *, length: int, batch_size: int
) -> dict[str, float]:
    """The figures of a model's weights in the format they have.

    Args:
        model: a language model and its tokenizer; the parameters may come from `quantize`.
        texts: held-out documents.
        sum_loss: from `make_sum_loss`; given, so that it is compiled once for calls of the same shape.
        length: tokens per row.
        batch_size: rows per call.

    Returns:
        `bytes` of all parameters, `linear_bytes` of the linear maps alone, counted `tokens`, and of these
        `nats` per token, `bits_per_byte` and `perplexity` per token.
    """
    rows = heldout_rows(texts, model.tokenizer, length)
    tokens, nats = float(rows["loss_mask"].sum()), mean_loss(sum_loss, model.params, rows, batch_size)
    maps = [leaf_at(model.params, path) for path in linear_maps(model.params)]
    return {
        "bytes": tree_bytes(model.params),
        "linear_bytes": tree_bytes(maps),
        "tokens": tokens,
        "nats": nats,
        "bits_per_byte": bits_per_byte(nats, tokens, texts),
        "perplexity": math.exp(nats),
    }
