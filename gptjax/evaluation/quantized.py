"""What quantised weights cost: held-out loss and bytes of a model, format by format."""

import math

from gptjax.evaluation.perplexity import bits_per_byte, heldout_rows, mean_loss
from gptjax.models.functional import leaf_at, linear_maps
from gptjax.models.quantization import QuantizationConfig, quantize, tree_bytes
from gptjax.stages.handover import TrainedModel
from gptjax.stages.language_loss import make_sum_loss


def quantization_table(
    model: TrainedModel,
    texts: list[str],
    formats: dict[str, QuantizationConfig],
    *,
    length: int,
    batch_size: int = 16,
) -> list[dict]:
    """One row for the weights as they are, then one per format.

    Args:
        model: a language model and its tokenizer.
        texts: held-out documents.
        formats: name -> how the linear maps are quantised.
        length: tokens per row.
        batch_size: rows per call.

    Returns:
        rows of `format`, `bytes` of all parameters, `linear_bytes` of the linear maps alone, `nats` per
        token, `bits_per_byte`, `perplexity` per token, and `change`, the perplexity's relative change.
    """
    rows = heldout_rows(texts, model.tokenizer, length)
    tokens, sum_loss = float(rows["loss_mask"].sum()), make_sum_loss(model.definition)
    table: list[dict] = []
    for name, config in {"float32": None, **formats}.items():
        params = model.params if config is None else quantize(model.params, config)
        nats = mean_loss(sum_loss, params, rows, batch_size)
        perplexity = math.exp(nats)
        table.append(
            {
                "format": name,
                "bytes": tree_bytes(params),
                "linear_bytes": tree_bytes([leaf_at(params, path) for path in linear_maps(params)]),
                "nats": nats,
                "bits_per_byte": bits_per_byte(nats, tokens, texts),
                "perplexity": perplexity,
                "change": perplexity / table[0]["perplexity"] - 1 if table else 0.0,
            }
        )
    return table


def quantization_text(table: list[dict]) -> str:
    """The table in Markdown."""
    lines = [
        "| weights | MB | linear maps, MB | bits per byte | perplexity | change |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        sizes = f"{row['bytes'] / 1e6:.2f} | {row['linear_bytes'] / 1e6:.2f}"
        loss = f"{row['bits_per_byte']:.4f} | {row['perplexity']:.3f} | {100 * row['change']:+.2f} %"
        lines.append(f"| {row['format']} | {sizes} | {loss} |")
    return "\n".join(lines)
