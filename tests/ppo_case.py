"""A policy, a reference, a critic and a reward model that differ, and replies drawn from the policy."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.decode import left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.transformer import DecoderConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.rollout import Rollout, draw
from gptjax.training.optimizers import OptimizerConfig

END, PAD, B = 1, 0, 8
# Metrics that are differences of numbers which would be equal without rounding.
ROUNDING = ("val/sampler_gap", "max_seq_mult_prob_error", "mean_seq_mult_prob_error")
# Wide initial weights: a model that prefers some tokens, so that every formula has something to get wrong.
MODEL = DecoderConfig(
    vocab_size=23, context_length=24, width=16, layers=1, heads=2, loop="unroll", init_std=0.3
)
# A large epsilon makes the update proportional to the gradient; with Adam's usual one, a gradient of 1e-9
# would be blown up to a full step, and rounding with it.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-2, schedule="constant", weight_decay=0.0)
CONFIG = PpoConfig(
    sampling=SamplingConfig(temperature=0.7, max_new_tokens=6),
    prompt_length=8,
    iterations=4,
    batch_size=B,
    minibatches=1,
    gae_lambda=0.9,
    gamma=0.98,
    kl_coef=0.3,
    missing_eos_penalty=0.75,
    ptx_coef=0.5,
    ptx_rows=8,
    ptx_length=12,
    corpora={"text": 1.0},
    optimizer=OPTIMIZER,
    value_optimizer=OPTIMIZER,
)


@dataclass(frozen=True)
class Case:
    """The models of a PPO run."""

    language: ModelDefinition
    scalar: ModelDefinition
    policy: Any
    reference: Any
    critic: Any
    reward: Any
    prompts: dict[str, np.ndarray]


def make_case(model: DecoderConfig = MODEL) -> Case:
    """Models with random weights; the reference is a policy nearby, the critic a reward model nearby."""
    language, scalar = ModelDefinition(LanguageModel, model), ModelDefinition(ScalarModel, model)
    policy = jax.jit(language.initialise)(jax.random.key(0))
    reward = jax.jit(scalar.initialise)(jax.random.key(1))
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, MODEL.vocab_size, n).tolist() for n in (3, 8, 5, 1, 7, 6, 4, 2)]
    tokens, mask = left_pad(ids, PAD, CONFIG.prompt_length)
    return Case(
        language,
        scalar,
        policy,
        moved(policy, 0.03, 2),
        moved(reward, 0.1, 3),
        reward,
        {"tokens": tokens, "mask": mask},
    )


def moved(params, size: float, seed: int):
    """The parameters with noise of a given size added."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, size, x.shape), x.dtype), params)


def drawn(case: Case) -> Rollout:
    """Replies of the policy to the prompts, with seeds that give replies of 1, 3 and 6 tokens."""
    keys = request_keys(np.arange(224, 224 + B))

    @jax.jit
    def sample(params):
        prompts = (case.prompts["tokens"], case.prompts["mask"])
        return draw(case.language, params, *prompts, keys, CONFIG.sampling, END, PAD)

    return sample(case.policy)


def text_batch(number: int) -> dict[str, np.ndarray]:
    """Rows of the text whose loss PPO-ptx keeps."""
    rng = np.random.default_rng([9, number])
    rows = rng.integers(0, MODEL.vocab_size, (CONFIG.ptx_rows, CONFIG.ptx_length + 1), dtype=np.int32)
    mask = np.ones((CONFIG.ptx_rows, CONFIG.ptx_length), np.float32)
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:], "loss_mask": mask}
