"""Several replies to each prompt, and what reward models say of them.

Legend: N prompts asked, n replies to each, B prompts at a time, P prompt slots.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.decode import left_pad
from gptjax.generation.sampling import SamplingConfig
from gptjax.sharding.mesh import place
from gptjax.stages.handover import TrainedModel
from gptjax.stages.ppo_data import Prompt, fitting_prompts, read_prompts
from gptjax.stages.rollout import Rollout, draw, reward_scores


def choose_prompts(config, tokenizer) -> list[Prompt]:
    """The N training prompts that are asked, with their ids, in random order.

    Args:
        config: prompts, prompt_length, asked and seed.
        tokenizer: the policy's.

    Raises:
        DataError: none fits.
    """
    prompts = read_prompts(config.prompts, "train", config.seed)
    kept = fitting_prompts(prompts, tokenizer, config.prompt_length)
    rng = np.random.default_rng(config.seed)
    rounds = -(-config.asked // len(kept))
    order = np.concatenate([rng.permutation(len(kept)) for _ in range(rounds)])[: config.asked]
    return [kept[i] for i in order]


def prompt_batches(prompts: Sequence[list[int]], config, pad_id: int, mesh: jax.sharding.Mesh):
    """`batch_at(number)`: the next `config.batch_size` prompts, left-padded, on the mesh."""

    def batch_at(number: int):
        part = prompts[number * config.batch_size : (number + 1) * config.batch_size]
        tokens, mask = left_pad(part, pad_id, config.prompt_length)
        return place({"tokens": tokens, "mask": mask}, mesh)

    return batch_at


def make_replies(
    base: TrainedModel, judges: Mapping[str, TrainedModel], sampling: SamplingConfig, count: int
) -> Callable[..., tuple[Rollout, dict[str, jax.Array]]]:
    """`replies(prompts, keys)`: n = `count` replies to each of B prompts, neighbours in the rollout.

    Args:
        base: the policy.
        judges: name -> reward model.
        sampling: how replies are drawn.
        count: n.

    The arguments of `replies` are a batch of `prompt_batches` and B n PRNG keys; it returns the rollout of
    B n rows and, of every judge, its raw scores, float32 `[B, n]`.
    """
    ends = base.tokenizer.im_end_id, base.tokenizer.pad_id
    judging = {name: judge.params for name, judge in judges.items()}

    @jax.jit
    def program(policy, judging, tokens, mask, keys):
        tokens, mask = jnp.repeat(tokens, count, 0), jnp.repeat(mask, count, 0)
        rollout = draw(base.definition, policy, tokens, mask, keys, sampling, *ends)
        scores = {name: reward_scores(judges[name].definition, judging[name], rollout) for name in judges}
        return rollout, {name: score.reshape(-1, count) for name, score in scores.items()}

    return lambda prompts, keys: program(base.params, judging, prompts["tokens"], prompts["mask"], keys)


def text_lengths(rollout: Rollout) -> jax.Array:
    """Tokens of each reply without its end-of-message token, int32; -1 for a reply that never ended."""
    return jnp.where(rollout.ended, rollout.mask.sum(1).astype(jnp.int32) - 1, -1)
