"""The reward models of a run of PPO: those that pay, and one that only watches.

`config` is a `PpoConfig`.
"""

from gptjax.config import ConfigError
from gptjax.stages.handover import TrainedModel


def judge_folders(config) -> dict[str, str]:
    """Run folders of the reward models, "reward", "reward_2" and on, and, where one is tracked, of "gold"."""
    gold = config.tracking.gold if config.tracking else ""
    further = {f"reward_{number}": folder for number, folder in enumerate(config.ensemble, 2)}
    return {"reward": config.reward} | further | ({"gold": gold} if gold else {})


def by_name(reward) -> dict:
    """What `paying` gives, by the names of `judge_folders`."""
    members = reward if isinstance(reward, tuple) else (reward,)
    return {
        "reward" if number == 1 else f"reward_{number}": member for number, member in enumerate(members, 1)
    }


def paying(config, judges: dict[str, TrainedModel]):
    """Parameters of the reward model, or a tuple of those of an ensemble.

    Raises:
        ConfigError: its members differ in shape.
    """
    if not config.ensemble:
        return judges["reward"].params
    members = [judge for name, judge in judges.items() if name != "gold"]
    for folder, member in zip(config.ensemble, members[1:], strict=True):
        if member.definition.config != members[0].definition.config:
            raise ConfigError(f"ensemble: the reward models of {config.reward} and {folder} differ in shape")
    return tuple(member.params for member in members)
