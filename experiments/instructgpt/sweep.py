"""PPO's price of divergence and pretraining gradient, the K of rankings, and other optimisers of preference.

Command: gptjax sweep experiments/instructgpt/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

PPO, RANKINGS = "experiments/instructgpt/ppo.py", "experiments/instructgpt/rankings.py"
# The same 3,600 pairs, 36 of them a step, from 7,200, 2,400 and 900 replies.
PAIRS = {2: (3600, 36), 4: (600, 6), 9: (100, 1)}
WITHOUT_REWARD = ("dpo", "ipo", "kto", "orpo")
WITHOUT_CRITIC = ("rloo", "grpo")


def sweep() -> SweepConfig:
    """Every run of README.md."""
    labels = "{runs}/instructgpt/labels-{seed}"
    return SweepConfig(
        arms={
            "instructgpt/ppo": PPO,
            **{f"instructgpt/ptx_{ptx}": f"{PPO} --ptx-coef {ptx}" for ptx in (0.5, 2)},
            **{f"instructgpt/kl_{kl}": f"{PPO} --kl-coef {kl}" for kl in (0, 0.3)},
            **{
                f"instructgpt/rankings_{k}": f"{RANKINGS} --k-min {k} --k-max {k} --groups {groups} "
                f"--batch-size {batch}"
                for k, (groups, batch) in PAIRS.items()
            },
            "instructgpt/labels": RANKINGS,
            "instructgpt/labels_ppo": f"{PPO} --reward {labels}",
            **{
                f"instructgpt/labels_{name}": f"experiments/instructgpt/{name}.py --iterations 12 "
                f"--eval-bytes 10000 --reward {labels}"
                for name in WITHOUT_CRITIC
            },
            "instructgpt/labels_best_of_n": "experiments/instructgpt/best_of_n.py --asked 256 "
            f"--eval-bytes 10000 --reward {labels}",
            **{
                f"instructgpt/labels_{name}": f"experiments/instructgpt/{name}.py --groups 600 "
                f"--judging.eval-bytes 10000 --judging.reward {labels}"
                for name in WITHOUT_REWARD
            },
        },
        baseline="instructgpt/ppo",
    )
