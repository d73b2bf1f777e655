"""Rounds of labelling and alignment: how many and how large, and what each starts from.

`config` is an `OnlineConfig`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIRST = "first"  # the name of the policy before any round


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 1.
        prompts: rankings to be made.
        iterations: of PPO.
    """

    number: int
    prompts: int
    iterations: int

    @property
    def name(self) -> str:
        """What the round's folder and its policy are called."""
        return f"round-{self.number}"


def schedule(config) -> list[Round]:
    """The rounds; of the static control one, with the rankings and iterations of all."""
    times, rounds = (config.rounds, 1) if config.static else (1, config.rounds)
    sizes = times * config.prompts, times * config.ppo.iterations
    return [Round(number, *sizes) for number in range(1, rounds + 1)]


def start_of(config, policies: Sequence[str], worth: Mapping[str, float]) -> str:
    """Which of the policies so far, the latest last, the next PPO starts from; see `OnlineConfig.start`.

    Args:
        worth: policy -> mean score of its samples, of the policies that have been deployed.
    """
    if config.start == FIRST:
        return FIRST
    if config.start == "best":
        return max((name for name in policies if name in worth), key=worth.__getitem__)
    if config.start == "latest":
        return policies[-1]
    return policies[min(config.start, len(policies) - 1)]
