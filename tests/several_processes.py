"""A small run of several processes on this machine, of which one can be stopped, killed or made to hang."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from stage_driver import arrange, context, settle

DEVICES = 4
STEPS = 48
ROWS = 16


class Group:
    """The processes of one start; those that live when the test ends are killed.

    Args:
        folder: of the run.
        cache: for compiled programs.
        count: of processes.
        hang_at: the batch at which the last process hangs.
        die: (process, moment, n): it is killed at the n-th such moment, see `stage_driver.MOMENTS`.
    """

    def __init__(self, folder: Path, cache: Path, count: int = 2, hang_at: int | None = None, die=None):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            context.Process(target=work, args=(port, count, index, folder, cache, hang_at, die))
            for index in range(count)
        ]
        for process in self.processes:
            process.start()

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Until a line of this step is in `metrics.jsonl`."""
        end = time.monotonic() + seconds
        while self.last_step() < step:
            assert time.monotonic() < end, self.log()
            assert all(process.is_alive() for process in self.processes), self.log()
            time.sleep(0.05)

    def last_step(self) -> int:
        file = self.folder / "metrics.jsonl"
        lines = file.read_text("utf-8").splitlines(keepends=True) if file.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)

    def signal(self, index: int, number: signal.Signals) -> None:
        os.kill(self.processes[index].pid, number)

    def exit_codes(self, seconds: float = 90) -> list[int]:
        """Waits for the ends of all."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
                raise AssertionError(f"a process is still there after {seconds} s:\n{self.log()}")
        return [process.exitcode for process in self.processes]

    def log(self) -> str:
        logs = sorted(self.folder.parent.glob(f"{self.folder.name}-*.log"))
        return "\n".join(path.read_text("utf-8", "replace")[-3000:] for path in logs)


def work(port: int, count: int, index: int, folder: Path, cache: Path, hang_at: int | None, die) -> None:
    """One process: a linear map, its parameters sharded over two devices, its batch over all four."""
    settle(Path(f"{folder}-{index}"), cache)
    if die and die[0] == index:
        arrange(*die[1:], signal.SIGKILL)
    import jax

    from gptjax.training.stopping import leave_after

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    if count > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=20
        )
    try:
        _train(jax.process_index(), count, folder, hang_at)
    except SystemExit as stopped:
        _leave(jax, stopped.code)
    except Exception as error:
        sys.exit(leave_after(error))
    _leave(jax, 0)


def _leave(jax, code: int) -> None:
    sys.stdout.flush()
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # multiprocessing leaves without asking what else is to be done
    sys.exit(code)


def _train(index: int, count: int, folder: Path, hang_at: int | None) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from gptjax.sharding.mesh import MeshConfig, make_mesh, place, replicated
    from gptjax.stages.sharded import compile_step
    from gptjax.training.digest import leaf_digests
    from gptjax.training.loop import LoopSettings, run_loop
    from gptjax.training.optimizers import OptimizerConfig, make_optimizer
    from gptjax.training.step import TrainState, make_train_step

    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01), STEPS, {"w": ("embed", "mlp")})

    def squares(params, batch, total, key):
        noise = jax.random.normal(key, batch["y"].shape)
        return ((batch["x"] @ params["w"] - batch["y"] - noise) ** 2).sum() / total, {}

    def batch_at(number):
        if number == hang_at and index == count - 1:
            time.sleep(1000)
        time.sleep(0.1)  # or the run would be over before the notice has got round
        rng = np.random.default_rng(number)
        batch = {
            name: rng.normal(size=(ROWS, width)).astype(np.float32) for name, width in (("x", 8), ("y", 4))
        }
        return place(batch, mesh)

    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), replicated(mesh)
    fresh = jax.eval_shape(lambda: TrainState.create({"w": jnp.full((8, 4), 0.3)}, optimizer))
    state = jax.jit(
        lambda: TrainState.create({"w": jnp.full((8, 4), 0.3)}, optimizer),
        out_shardings=jax.tree.map(lambda leaf: split if leaf.ndim else whole, fresh),
    )()
    key = jax.jit(lambda: jax.random.key(3), out_shardings=whole)()
    settings = LoopSettings(
        stage="fit",
        folder=folder,
        steps=STEPS,
        save_every=6,
        eval_every=0,
        identity={"data": "a"},
        tokens_per_step=ROWS,
        flops_per_token=None,
        devices=DEVICES,
        hang_after=4.0,
    )
    step = compile_step(make_train_step(squares, lambda batch: jnp.float32(ROWS), optimizer), mesh)
    state = run_loop(state, step, batch_at, key, settings)
    (folder / f"digests-{index}.json").write_text(json.dumps(leaf_digests(state)))
