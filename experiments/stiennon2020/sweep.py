"""What the critic starts from: the reward model, or the policy.

Command: gptjax sweep experiments/stiennon2020/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        experiment="experiments/instructgpt/ppo.py",
        arms={
            "instructgpt/ppo": "",
            "stiennon2020/critic_of_policy": "--conventions.critic-from policy",
        },
    )
