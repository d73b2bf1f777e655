"""Three more seeds where three leave a question of PPO open: a paired test needs six.

Command: gptjax sweep experiments/more_seeds/sweep.py --jobs 2
"""

from experiments.instructgpt.sweep import PPO
from experiments.instructgpt.sweep import sweep as instructgpt
from experiments.stiennon2020.sweep import sweep as stiennon2020
from experiments.ziegler2019.sweep import sweep as ziegler2019
from gptjax.sweeps.plan import SweepConfig

OPEN = (
    *("instructgpt/ppo", "instructgpt/ptx_0.5", "instructgpt/kl_0.3", "stiennon2020/critic_of_policy"),
    *(f"ziegler2019/{name}" for name in ("whitened_rewards", "four_epochs", "epsilon", "adam_tf1")),
    "instructgpt/labels",
    *(f"instructgpt/labels_{name}" for name in ("ppo", "rloo", "grpo", "best_of_n", "dpo")),
)


def sweep() -> SweepConfig:
    """Every run of README.md."""
    arms = instructgpt().arms | stiennon2020().arms | ziegler2019().arms
    return SweepConfig(experiment=PPO, arms={name: arms[name] for name in OPEN}, seeds=(3, 4, 5))
