"""Fine-tuning, reward model and PPO, one after the other, in every process that is started with this.

    python stages_in_processes.py DATA BASE

DATA is a folder of `tiny.write_data`, BASE a run folder with a language model. The runs lie where it starts.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny

from gptjax.sharding.distributed import join_cluster
from gptjax.sharding.mesh import MeshConfig, to_host
from gptjax.stages import finetune, ppo, ppo_iteration, reward
from gptjax.training.optimizers import OptimizerConfig

MESH = MeshConfig(data=2, fsdp=2)
# A large epsilon: with Adam's usual one a gradient of 1e-9 is blown up to a full step, and rounding with it.
ADAM = OptimizerConfig(learning_rate=1e-2, epsilon=1e-2)


def main(data: Path, base: str) -> None:
    join_cluster()
    road, make_rollout = tiny.config(data), ppo_iteration.make_rollout

    def watched(*given):
        rollout_step = make_rollout(*given)

        def rollout(*given):
            drawn = rollout_step(*given)
            np.save("replies.npy", to_host(drawn.response))
            return drawn

        return rollout

    ppo_iteration.make_rollout = watched
    here = {"mesh": MESH, "optimizer": ADAM}
    tuning = replace(road.finetune, base=base, steps=2, samples=1, heldout_rows=4, **here)
    finetune.run(tuning, Path("finetune"))
    reward.run(replace(road.reward, base="finetune", batch_size=12, epochs=1, **here), Path("reward"))
    bases, short = {"policy": "finetune", "reward": "reward"}, {"iterations": 1, "eval_bytes": 300}
    ppo.run(replace(road.ppo, value_optimizer=ADAM, **bases, **short, **here), Path("ppo"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
