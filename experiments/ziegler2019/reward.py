"""The quickstart's reward model, its rewards scaled to standard deviation 1 where they are centred on 0.

Paper: Ziegler et al. 2019, section 2.1, which sets gain and bias so, on samples of the reference policy.
Expected: the quickstart's held-out accuracy; PPO on it pays another price for a nat at the same `kl_coef`.
Time: that of the quickstart's reward model.
Command: gptjax train experiments/ziegler2019/reward.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart


def config():
    """The configuration of the run."""
    return replace(quickstart().reward, base="runs/quickstart/finetune", normalise="mean_std")
