"""How well blanks are filled when every earlier token is given: loss, tokens right, whole blanks right.

Legend: B batch, L length, N rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.losses.lm import token_log_probs
from gptjax.models.functional import ModelDefinition
from gptjax.sharding.mesh import to_host


def make_blank_scores(definition: ModelDefinition):
    """Jitted `(params, batch) -> (nats, whether it is the likeliest)` of each target, `[B, L]` both."""

    def scores(params, batch):
        positions, segments = batch["positions"], batch["segment_ids"]
        logits = definition.apply(params, batch["tokens"], positions=positions, segment_ids=segments)
        right = jnp.argmax(logits, -1) == batch["targets"]
        return -token_log_probs(logits, batch["targets"]), right

    return jax.jit(scores)


def infilling_figures(scores, params, rows: dict[str, np.ndarray], batch_size: int) -> dict[str, float]:
    """Figures over the blanks of held-out rows; end tokens are not counted.

    Args:
        scores: from `make_blank_scores`.
        params: model parameters.
        rows: as `data.infilling.Blanks.heldout` makes them.
        batch_size: rows per call.

    Returns:
        `loss` in nats a token, `accuracy` of the tokens, `exact`, the share of blanks all of whose tokens are
        right, and the numbers of both, `tokens` and `blanks`.
    """
    losses, right = np.zeros(rows["blanks"].shape), np.zeros(rows["blanks"].shape, bool)
    count = len(losses)
    for start in range(0, count, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = {name: rows[name][index] for name in ("tokens", "targets", "positions", "segment_ids")}
        losses[index], right[index] = to_host(scores(params, batch))
    inside = rows["blanks"] > 0
    row = np.broadcast_to(np.arange(count)[:, None], inside.shape)
    names = np.stack([row, rows["segment_ids"], rows["blanks"]], -1)
    blanks, wrong = (set(map(tuple, names[where].tolist())) for where in (inside, inside & ~right))
    return {
        "loss": float(losses[inside].mean()),
        "accuracy": float(right[inside].mean()),
        "exact": 1 - len(wrong) / len(blanks),
        "tokens": int(inside.sum()),
        "blanks": len(blanks),
    }
