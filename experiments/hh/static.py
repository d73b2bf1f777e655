"""The control of online.py: as many labels, all of replies of the first policy, and as many PPO iterations.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), which compares online with static data of equal size.
Expected: behind the last online round with as many PPO iterations, `--ppo.iterations 4`, ahead with all 36.
Time: 3 minutes beside another run on two cores.
Command: gptjax train experiments/hh/static.py
"""

import dataclasses

from experiments.hh.online import config as online
from gptjax.stages.online import OnlineConfig


def config() -> OnlineConfig:
    """The configuration of the run."""
    return dataclasses.replace(online(), static=True)
