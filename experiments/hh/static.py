"""The control of online.py: as many labels, all of replies of the first policy, and as many PPO iterations.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), which compares online with static data of equal size.
Expected: a policy worse than that of the last online round.
Time: see README.md.
Command: gptjax train experiments/hh/static.py
"""

import dataclasses

from experiments.hh.online import config as online
from gptjax.stages.online import OnlineConfig


def config() -> OnlineConfig:
    """The configuration of the run."""
    return dataclasses.replace(online(), static=True)
