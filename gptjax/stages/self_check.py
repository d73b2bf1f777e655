"""Identities that must hold while a policy is aligned, or every number after the first is suspect.

Legend: B prompts, P prompt slots, T response slots.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import INTERNAL, UserError
from gptjax.stages.adapters import attached
from gptjax.stages.rollout import Rollout, divergences, response_logits, response_values, reward_scores

# Largest difference between two ways to compute the same log-probability, in nats. float32 sums in another
# order differ in the sixth digit; operands rounded to bfloat16 keep two to three digits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
# Root mean square of (ratio - 1) before anything was updated. The program of the update may add up in another
# order than the one that scored the rollout: 1e-7 in float32, where a temperature forgotten in one of them
# gives 0.1.
RATIO_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
# Replies that are scored again in other surroundings, at most: a check costs little, whatever the batch.
ROWS = 16


class SelfCheckFailed(UserError):
    """An identity does not hold; the message names it."""

    exit_code = INTERNAL


def check_due(config, number: int) -> bool:
    """Whether iteration `number`, counted from 0, begins with a check."""
    return config.self_check and number % config.self_check_every == 0


def announce(config, stage: str) -> None:
    """Says at a stage's start that nothing is checked, where it is so."""
    if not config.self_check:
        print(f"{stage}: the self-check is off (self_check = false): nothing is checked", flush=True)


class SelfCheck:
    """The checks of a run: in the iterations whose number they are due in, and in the first of every start.

    After a resume the latter is printed and not logged, for the metrics of a resumed run are those of an
    undisturbed one.

    Args:
        config: of the run.
        language: the policy's definition.
        score: the program that scores every rollout.
        scalar: the definition of critic and reward model, where there are any to check.
    """

    def __init__(self, config, language, score, scalar=None):
        self._config, self._dtype = config, language.config.compute_dtype
        self._log_probs = lambda params, r: score(params, r)[0]
        temperature = config.sampling.temperature
        # Each model by itself: adapted ones share a base, which a program of both would take twice.
        self._logits = jax.jit(lambda params, r: response_logits(language, attached(params), r))
        self._kl = jax.jit(lambda ours, theirs, r: divergences(ours, theirs, r, temperature).mean())
        self._padding_gap = jax.jit(lambda params, r: padding_gap(scalar, params, r))
        self._first: int | None = None

    def due(self, number: int) -> bool:
        """Whether iteration `number`, counted from 0, is checked; to be asked in every iteration."""
        self._first = number if self._first is None else self._first
        return check_due(self._config, number) or (self._config.self_check and number == self._first)

    def of_rollout(
        self, policy, reference, rollout: Rollout, floats, keys_of, number: int, judges=None
    ) -> dict:
        """Metrics of `check_identities`, before a rollout is learnt from; none where it is not due.

        `keys_of(number)` are the requests' keys of an iteration, `[B]`; `judges` are name -> parameters of
        scalar models; the other arguments are those of `check_identities`. Where policy and reference are
        read together anyway, their divergence is measured from whole distributions, on the same few replies.
        """
        if not self.due(number):
            return {} if self._config.self_check else {"self_check/off": 1.0}
        part = some_replies(rollout)
        padding = {name: float(self._padding_gap(params, part)) for name, params in (judges or {}).items()}
        gaps = check_identities(
            self._log_probs,
            policy,
            reference,
            rollout,
            floats,
            jnp.stack([keys_of(number), keys_of(number + 1)]),
            self._dtype,
            number,
            padding,
        )
        if not check_due(self._config, number):
            print(f"self-check passed at the start from iteration {number + 1}", flush=True)
            return {}
        exact = self._kl(self._logits(policy, part), self._logits(reference, part), part)
        return gaps | {"objective/kl_exact": exact}

    def of_update(self, metrics: dict, number: int) -> dict:
        """Metrics of `check_first_ratio`, after an iteration's first update; none where it is not due."""
        gap = check_first_ratio(metrics, self._dtype, number) if self.due(number) else {}
        return gap if check_due(self._config, number) else {}


def some_replies(rollout: Rollout) -> Rollout:
    """The first replies, at most half of them and `ROWS`."""
    rows = min(ROWS, -(-len(rollout.mask) // 2))
    return jax.tree.map(lambda x: x[:rows], rollout)


def check_identities(
    log_probs,
    policy,
    reference,
    rollout: Rollout,
    floats: Mapping,
    keys,
    dtype: str,
    number: int = 0,
    padding: Mapping[str, float] | None = None,
) -> dict:
    """Checks the identities on a rollout, before it is learnt from; gaps are in nats and units of reward.

    Args:
        log_probs: jitted `(params, rollout) -> float32 [B, T]`, teacher-forced at the sampling temperature;
            the program that scores every rollout.
        policy: parameters that drew the rollout.
        reference: parameters; before the first update they are the policy's.
        rollout: drawn from the policy.
        floats: name -> array, all of which must be float32.
        keys: `[2, B]` PRNG keys of this iteration and the next.
        dtype: compute precision, for the tolerance.
        number: of the iteration, from 0; only there are policy and reference the same.
        padding: name of a scalar model -> its `padding_gap`.

    Returns:
        the measured gaps, for the log.

    Raises:
        SelfCheckFailed: with the name of the identity.
    """
    tolerance = TOLERANCE[dtype]
    own = log_probs(policy, rollout)
    part = some_replies(rollout)
    alone = log_probs(policy, part)
    right, places = padded_right(part)
    on_the_right = jnp.take_along_axis(log_probs(policy, right), places, axis=1)
    gaps = {
        "self_check/sampler_gap": _largest((own - rollout.sampler_log_probs) * rollout.mask),
        "self_check/left_padding_gap": _largest(log_probs(policy, _more_padding(part)) - alone),
        "self_check/right_padding_gap": _largest((on_the_right - alone) * part.mask),
        "self_check/batch_gap": _largest(alone - own[: len(alone)]),
    }
    padding = {f"self_check/{name}_padding_gap": gap for name, gap in (padding or {}).items()}
    gaps |= padding
    if number == 0:
        gaps["self_check/kl_of_equal_models"] = _largest(own - log_probs(reference, rollout))
    verdicts = {
        "KL of policy and reference is 0": gaps.get("self_check/kl_of_equal_models", 0.0) == 0.0,
        "sampling and teacher forcing agree": gaps["self_check/sampler_gap"] <= tolerance,
        "left padding changes nothing": gaps["self_check/left_padding_gap"] <= tolerance,
        "right padding changes nothing": gaps["self_check/right_padding_gap"] <= tolerance,
        "padding changes no value and no score": all(gap <= tolerance for gap in padding.values()),
        "batch size changes nothing": gaps["self_check/batch_gap"] <= tolerance,
        "rewards, values and log-probabilities are float32": _all_float32({**floats, "own": own}),
        "each request of each iteration has its own key": _all_different(keys),
        "every response has a token": bool((rollout.mask.sum(1) > 0).all()),
    }
    for identity, holds in verdicts.items():
        if not holds:
            raise SelfCheckFailed(
                f"PPO self-check failed in iteration {number + 1}: '{identity}' does not hold (measured "
                f"gaps: {gaps}); the rollout was not learnt from"
            )
    if number == 0:
        print(f"self-check passed, {len(verdicts)} identities hold", flush=True)
    return gaps


def check_first_ratio(metrics: dict, dtype: str, number: int = 0) -> dict:
    """Checks that the first update on a rollout saw the ratio 1, in the update's own program.

    Args:
        metrics: of the policy's first update, with `val/ratio_spread`, the mean of `(ratio - 1)^2`.
        dtype: compute precision, for the tolerance.
        number: of the iteration, from 0.

    Returns:
        the root mean square of `ratio - 1`, for the log.

    Raises:
        SelfCheckFailed: it is too large; the update it came with is not kept.
    """
    gap = float(jnp.sqrt(metrics["val/ratio_spread"]))
    if not gap <= RATIO_TOLERANCE[dtype]:
        raise SelfCheckFailed(
            f"PPO self-check failed in iteration {number + 1}: "
            "'the probability ratio is 1 on the first pass' does not hold (its root mean square distance "
            f"from 1 is {gap:.3g}, at most {RATIO_TOLERANCE[dtype]:g} is rounding); the update was not saved"
        )
    return {"self_check/first_ratio_gap": gap}


def check_summary(config, rows: list[dict]) -> dict:
    """What `done.json` says of the self-check, from the lines of `metrics.jsonl`."""
    passed = sum("self_check/sampler_gap" in row for row in rows)
    return {"self_check": {"on": config.self_check, "passed": passed}}


def padding_gap(scalar, params, rollout: Rollout) -> jax.Array:
    """Largest change of a scalar model's values and scores when all padding moves to the right."""
    right, places = padded_right(rollout)
    values, moved = (response_values(scalar, params, r) for r in (rollout, right))
    of_values = (jnp.take_along_axis(moved, places, axis=1) - values) * rollout.mask
    of_scores = reward_scores(scalar, params, right) - reward_scores(scalar, params, rollout)
    return jnp.maximum(jnp.abs(of_values).max(), jnp.abs(of_scores).max())


@jax.jit
def padded_right(rollout: Rollout) -> tuple[Rollout, jax.Array]:
    """The same dialogues with all their padding on the right.

    Returns:
        a rollout whose prompts are the dialogues' first tokens and whose responses are the rest, and the
        slots in these, int32 `[B, T]`, of the slots of the rollout given.
    """
    P, T = rollout.prompt.shape[1], rollout.mask.shape[1]
    tokens = jnp.concatenate([rollout.prompt, rollout.response], axis=1)
    valid = jnp.concatenate([rollout.prompt_mask, rollout.mask > 0], axis=1)
    lengths_B = rollout.prompt_mask.sum(1)
    source = (P - lengths_B)[:, None] + jnp.arange(P + T)
    source, inside = jnp.minimum(source, P + T - 1), source < P + T
    moved = jnp.take_along_axis(tokens, source, axis=1)
    valid = jnp.take_along_axis(valid, source, axis=1) & inside
    right = replace(
        rollout,
        prompt=moved[:, :1],
        prompt_mask=valid[:, :1],
        response=moved[:, 1:],
        mask=valid[:, 1:].astype(jnp.float32),
        sampler_log_probs=jnp.zeros(moved[:, 1:].shape, jnp.float32),
    )
    return right, (lengths_B - 1)[:, None] + jnp.arange(T)


def _largest(x) -> float:
    return float(jnp.abs(x).max())


def _more_padding(rollout: Rollout) -> Rollout:
    prompt, mask = (jnp.pad(x, ((0, 0), (1, 0))) for x in (rollout.prompt, rollout.prompt_mask))
    return replace(rollout, prompt=prompt, prompt_mask=mask)


def _all_float32(arrays: Mapping) -> bool:
    return all(array.dtype == jnp.float32 for array in arrays.values())


def _all_different(keys) -> bool:
    data = np.asarray(jax.random.key_data(keys)).reshape(-1, 2)
    return len(np.unique(data, axis=0)) == len(data)
