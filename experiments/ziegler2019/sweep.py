"""Choices of the first code of RLHF: rewards scaled in two ways, four epochs a rollout, TensorFlow's epsilon.

Command: gptjax sweep experiments/ziegler2019/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

EPSILON = "--optimizer.epsilon 1e-5 --value-optimizer.epsilon 1e-5"
REWARD = "experiments/ziegler2019/reward.py"
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
            # Reward models of each seed, so that each of the two is laid beside the same one, scaled.
            "ziegler2019/reward_bias": f"{REWARD} --normalise bias",
            "ziegler2019/reward_mean_std": REWARD,
            "ziegler2019/bias": "--reward {runs}/ziegler2019/reward_bias-{seed}",
            "ziegler2019/mean_std": "--reward {runs}/ziegler2019/reward_mean_std-{seed}",
        },
    )
