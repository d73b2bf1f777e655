"""Choices of the first code of RLHF: whitened rewards, four epochs a rollout, Adam with TensorFlow's epsilon.

Command: gptjax sweep experiments/ziegler2019/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

EPSILON = "--optimizer.epsilon 1e-5 --value-optimizer.epsilon 1e-5"
ADAM_TF1 = "--optimizer.kind adam_tf1 --value-optimizer.kind adam_tf1"


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        experiment="experiments/instructgpt/ppo.py",
        arms={
            "instructgpt/ppo": "",
            "ziegler2019/whitened_rewards": "--whiten-rewards true",
            "ziegler2019/four_epochs": "--epochs 4",
            "ziegler2019/epsilon": EPSILON,
            "ziegler2019/adam_tf1": f"{EPSILON} {ADAM_TF1}",
        },
    )
