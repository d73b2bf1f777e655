"""The next-token loss of a language model on a batch; shared by pretraining, fine-tuning and PPO-ptx.

Legend: B batch, L length.
"""

import jax
import numpy as np

from gptjax.losses.lm import linear_cross_entropy
from gptjax.losses.masked import masked_sum
from gptjax.models.functional import ModelDefinition
from gptjax.sharding.mesh import place
from gptjax.sharding.rules import parts_to_rows, row_devices

# What the loss reads. Rows without segments are one document each: attention crosses nothing.
PLAIN = ("tokens", "targets", "loss_mask")
PACKED = (*PLAIN, "segment_ids", "positions")


def make_language_loss(
    definition: ModelDefinition, *, z_loss: float = 0.0, chunk: int = 1024, microbatches: int = 1
):
    """`loss(params, batch, total, key) -> (scalar, metrics)`: masked cross-entropy, additive over rows.

    Args:
        definition: a language model.
        z_loss: coefficient of the squared log-normaliser.
        chunk: tokens whose logits a device holds at once. Every chunk gathers the output matrix anew.
        microbatches: parts of the batch that follow each other through a pipeline.

    The batch holds `tokens, targets` int32 `[B, L]`, `loss_mask` float32 `[B, L]` and, for packed rows,
    `segment_ids, positions` int32 `[B, L]`. `total` is the count of `count_tokens` over the whole batch.
    """

    def loss_fn(params, batch, total, key):
        model = definition.bind(params)
        flowing = {"microbatches": microbatches} if microbatches > 1 else {}
        hidden_BxLxD = model.hidden(
            batch["tokens"],
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            key=key,
            **flowing,
        )
        matrix, transposed = model.output_matrix()
        return linear_cross_entropy(
            parts_to_rows(hidden_BxLxD),
            matrix,
            parts_to_rows(batch["targets"]),
            parts_to_rows(batch["loss_mask"]),
            transposed=transposed,
            z_loss=z_loss,
            chunk_size=chunk * row_devices(),
            matmul_dtype=definition.config.compute_dtype,
            denominator=total,
        )

    return loss_fn


def count_tokens(batch) -> jax.Array:
    """Weight of the tokens that carry loss in the whole batch, float32."""
    return masked_sum(batch["loss_mask"], batch["loss_mask"])


def make_sum_loss(definition: ModelDefinition, mesh=None, microbatches: int = 1):
    """Jitted `(params, batch) -> sum of the token losses` in nats, for evaluation.

    Args:
        definition: a language model.
        mesh: splits the batch; None leaves it whole on every device.
        microbatches: see `make_language_loss`.
    """
    loss_fn = make_language_loss(definition, microbatches=microbatches)
    sum_loss = jax.jit(lambda params, batch: loss_fn(params, batch, 1.0, None)[1]["loss"])
    if mesh is None:
        return sum_loss

    def split_sum_loss(params, batch):
        with jax.set_mesh(mesh):
            return sum_loss(params, place(select(batch, PLAIN), mesh))

    return split_sum_loss


def select(batch: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of a batch."""
    return {name: batch[name] for name in names}
