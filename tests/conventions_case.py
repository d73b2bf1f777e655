"""One fixed rollout of bigram models, for every convention: what was drawn, before anything is cut."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.rollout import Rollout
from gptjax.training.optimizers import OptimizerConfig

PAD, END, DOT, V, T = 0, 1, 2, 7, 6
PROMPTS = [[3, 4], [0, 6], [5, 5], [0, 3]]  # padded on the left
# Ends early, never, at the last slot, at once; the first full stops come too early or late enough.
DRAWN = [[4, 5, 1, 6, 2, 4], [5, 3, 2, 4, 6, 5], [3, 2, 6, 4, 2, 1], [1, 4, 6, 2, 2, 5]]
CUT_AFTER = 3
TEXT = np.array([[3, 4, 5, 6, 2], [6, 2, 4, 3, 1]], np.int32)
MINIBATCHES = ([0, 1], [2, 3])

OPTIMIZER = OptimizerConfig(
    learning_rate=0.01, schedule="constant", weight_decay=0.0, epsilon=1e-3, clip_norm=0.05
)
CONFIG = PpoConfig(
    sampling=SamplingConfig(temperature=0.7, max_new_tokens=T),
    prompt_length=2,
    iterations=10,
    batch_size=8,
    minibatches=4,
    gamma=0.98,
    gae_lambda=0.9,
    kl_coef=0.3,
    missing_eos_penalty=0.75,
    corpora={"text": 1.0},
    optimizer=OPTIMIZER,
    value_optimizer=OPTIMIZER,
)


def make_models() -> dict[str, np.ndarray]:
    """Logits `[V, V]` and scalars `[V]`, float32; the trained ones have left those that drew and judged."""
    rng = np.random.default_rng(3)
    old, reference, moved = rng.normal(0, 1, (3, V, V))
    critic, reward, pushed = rng.normal(0, 1, (3, V))
    models = {"old": old, "reference": old + 0.3 * reference, "new": old + 0.3 * moved}
    models |= {"old_critic": critic, "new_critic": critic + 0.3 * pushed, "reward": reward}
    return {name: array.astype(np.float32) for name, array in models.items()}


def rollout_until(stops: bool) -> Rollout:
    """The rollout as the package holds it: up to the end token, or run on to the last slot."""
    prompt, drawn = np.array(PROMPTS, np.int32), np.array(DRAWN, np.int32)
    over = np.cumsum(drawn == END, axis=1) - (drawn == END) > 0
    mask = ~over if stops else np.ones(drawn.shape, bool)
    ended = (drawn == END).any(1) & stops
    arrays = (prompt, prompt > 0, np.where(mask, drawn, PAD), mask.astype(np.float32))
    return Rollout(*map(jnp.asarray, (*arrays, np.zeros(drawn.shape, np.float32), ended)))


class Bigram:
    """A language model whose logits are a row of a matrix."""

    axes = {"w": ("vocab", "embed")}
    config = SimpleNamespace(compute_dtype="float32")

    def bind(self, params):
        return SimpleNamespace(
            hidden=lambda tokens, **_: jax.nn.one_hot(tokens, V),
            logits=lambda hidden: hidden @ params["w"],
            output_matrix=lambda: (params["w"], False),
        )


class Unigram:
    """A scalar model that values a token alone."""

    axes = {"u": ("scalar",)}

    def apply(self, params, tokens, **_):
        return params["u"][tokens]
