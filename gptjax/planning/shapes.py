"""Which models an experiment starts from, found without training them.

A stage names its base by its run folder. Where the run has finished, its model says its shape; where it has
not, the experiment file that the folder is named after does: `runs/gpt2/large` is what
`experiments/gpt2/large.py` leaves, and `runs/quickstart/finetune` what that stage of the road leaves.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptjax.config import ConfigError, from_json, load_experiment, to_json
from gptjax.data.infilling import RESERVED
from gptjax.stages.infill import InfillConfig
from gptjax.stages.masked import MaskedConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.road import RoadConfig, stage_configs
from gptjax.stages.translate import TranslateConfig

Shape = tuple[str, Any]  # a kind of `stages.handover.KINDS` and the model's configuration


class Shapes:
    """Run folder -> shape of the model in it.

    Args:
        experiments: the folder of the experiment files; None is `experiments` here.
        known: shapes that are given instead of looked for.
        changes: fields that every model is planned with instead of its own, such as `remat="none"`.
    """

    def __init__(
        self,
        experiments: Path | None = None,
        known: Mapping[str, Shape] | None = None,
        **changes,
    ):
        self.experiments = experiments or Path("experiments")
        self.known, self.changes = dict(known or {}), changes

    def changed(self, **changes) -> "Shapes":
        """The same with other changes."""
        return Shapes(self.experiments, self.known, **changes)

    def own(self, model):
        """A model's configuration as it is to be planned."""
        return dataclasses.replace(model, **self.changes)

    def base(self, folder: str, key: str, *kinds: str):
        """The configuration of the model in a run folder.

        Args:
            folder: as a stage's configuration names it.
            key: that names it, for the message.
            kinds: those that will do; none for any.

        Raises:
            ConfigError: nothing says what lies there, or it is of another kind.
        """
        if not folder:
            raise ConfigError(
                f"{key} names no run folder, so that its model's size is not known: set --{key}"
            )
        if folder not in self.known:
            self.known[folder] = self._look_up(folder, key)
        kind, model = self.known[folder]
        if kinds and kind not in kinds:
            raise ConfigError(f"{key} = {folder} holds a {kind} model, where one of {kinds} is needed")
        return self.own(model)

    def left_by(self, config) -> Shape:
        """The shape of the model that a stage with this configuration leaves."""
        if isinstance(config, PretrainConfig):
            return "language", config.model
        if isinstance(config, InfillConfig):
            return "glm", dataclasses.replace(config.model, vocab_size=config.model.vocab_size + RESERVED)
        if isinstance(config, MaskedConfig):
            return "masked", config.model
        if isinstance(config, TranslateConfig):
            return "translation", config.model
        if isinstance(config, RewardConfig):
            trunk = self.base(config.base, "base", "language", "scalar")
            return "scalar", dataclasses.replace(trunk, layers=config.layers or trunk.layers)
        key = "policy" if hasattr(config, "policy") else "base"
        folder = getattr(config, key)
        self.base(folder, key)
        return self.known[folder]

    def to_json(self) -> dict:
        """What is known so far, for another process."""
        return {folder: [kind, to_json(model)] for folder, (kind, model) in self.known.items()}

    @staticmethod
    def from_json(values: dict) -> dict[str, Shape]:
        """What `to_json` wrote, for `known`."""
        return {folder: (kind, from_json(model)) for folder, (kind, model) in values.items()}

    def _look_up(self, folder: str, key: str) -> Shape:
        facts = Path(folder) / "model" / "model.json"
        if facts.exists():
            found = json.loads(facts.read_text("utf-8"))
            return found["kind"], from_json(found["config"])
        parts = Path(folder).parts
        for end in range(len(parts), 0, -1):
            for start in range(end):
                file = self.experiments.joinpath(*parts[start:end]).with_suffix(".py")
                if file.is_file():
                    return self._of_experiment(load_experiment(file), Path(*parts[:end]), parts[end:])
        raise ConfigError(
            f"{key} = {folder} holds no finished model, and no experiment file is named after it: say what "
            f"it is with --base {folder}=FAMILY:SIZE, such as gpt2:124M"
        )

    def _of_experiment(self, config, run: Path, rest: tuple[str, ...]) -> Shape:
        if isinstance(config, RoadConfig):
            stages = stage_configs(config, run)
            if "/".join(rest) not in stages:
                raise ConfigError(f"{run} is a road, whose stages are {', '.join(stages)}: name one of them")
            config = stages["/".join(rest)][1]
        return self.left_by(config)
