"""Identities that must hold before the first PPO update, or every number after it is suspect.

Legend: B prompts, T response slots.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import UserError
from gptjax.stages.rollout import Rollout

# Largest difference between two ways to compute the same log-probability, in nats. float32 sums in another
# order differ in the sixth digit; operands rounded to bfloat16 keep two to three digits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
# Root mean square of (ratio - 1) before anything was updated. The program of the update may add up in another
# order than the one that scored the rollout: 1e-7 in float32, where a temperature forgotten in one of them
# gives 0.1.
RATIO_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}


class SelfCheckFailed(UserError):
    """An identity does not hold; the message names it."""

    exit_code = 70


def check_identities(log_probs, policy, reference, rollout: Rollout, scores, keys, dtype: str) -> dict:
    """Checks the identities on the first rollout.

    Args:
        log_probs: jitted `(params, rollout) -> float32 [B, T]`, teacher-forced at the sampling temperature;
            the program that scores every rollout.
        policy, reference: parameters, equal before the first update.
        rollout: drawn from the policy.
        scores: float32 `[B]` of the reward model.
        keys: `[2, B]` PRNG keys of two iterations.
        dtype: compute precision, for the tolerance.

    Returns:
        the measured gaps, for the log.

    Raises:
        SelfCheckFailed: with the name of the identity.
    """
    tolerance = TOLERANCE[dtype]
    own, other = log_probs(policy, rollout), log_probs(reference, rollout)
    padded = log_probs(policy, _more_padding(rollout))
    half = log_probs(policy, jax.tree.map(lambda x: x[: -(-len(x) // 2)], rollout))
    gaps = {
        "self_check/kl_of_equal_models": _largest(own - other),
        "self_check/sampler_gap": _largest((own - rollout.sampler_log_probs) * rollout.mask),
        "self_check/padding_gap": _largest(padded - own),
        "self_check/batch_gap": _largest(half - own[: len(half)]),
    }
    verdicts = {
        "KL of policy and reference is 0": gaps["self_check/kl_of_equal_models"] == 0.0,
        "sampling and teacher forcing agree": gaps["self_check/sampler_gap"] <= tolerance,
        "left padding changes nothing": gaps["self_check/padding_gap"] <= tolerance,
        "batch size changes nothing": gaps["self_check/batch_gap"] <= tolerance,
        "rewards are float32": scores.dtype == jnp.float32,
        "each request of each iteration has its own key": _all_different(keys),
        "every response has a token": bool((rollout.mask.sum(1) > 0).all()),
    }
    for identity, holds in verdicts.items():
        if not holds:
            raise SelfCheckFailed(
                f"PPO self-check failed: '{identity}' does not hold (measured gaps in nats: {gaps}); "
                "no update was made"
            )
    print(f"ppo: self-check passed, {len(verdicts)} identities hold", flush=True)
    return gaps


def check_first_ratio(metrics: dict, dtype: str) -> dict:
    """Checks that the first update of all saw the ratio 1, in the update's own program.

    Args:
        metrics: of the policy's first update, with `val/ratio_spread`, the mean of `(ratio - 1)^2`.
        dtype: compute precision, for the tolerance.

    Returns:
        the root mean square of `ratio - 1`, for the log.

    Raises:
        SelfCheckFailed: it is too large; the update it came with is not kept.
    """
    gap = float(jnp.sqrt(metrics["val/ratio_spread"]))
    if not gap <= RATIO_TOLERANCE[dtype]:
        raise SelfCheckFailed(
            "PPO self-check failed: 'the probability ratio is 1 on the first pass' does not hold (its root "
            f"mean square distance from 1 is {gap:.3g}, at most {RATIO_TOLERANCE[dtype]:g} is rounding); "
            "nothing was saved"
        )
    return {"self_check/first_ratio_gap": gap}


def _largest(x) -> float:
    return float(jnp.abs(x).max())


def _more_padding(rollout: Rollout) -> Rollout:
    def wider(x):
        return jnp.pad(x, ((0, 0), (1, 0)))

    return Rollout(
        wider(rollout.prompt),
        wider(rollout.prompt_mask),
        rollout.response,
        rollout.mask,
        rollout.sampler_log_probs,
        rollout.ended,
    )


def _all_different(keys) -> bool:
    data = np.asarray(jax.random.key_data(keys)).reshape(-1, 2)
    return len(np.unique(data, axis=0)) == len(data)
