"""Asynchronous, atomic checkpoints through Orbax; the only file that knows its interface.

Orbax is capped below the next minor version in setup.cfg because this interface (`v1`) still moves.
"""

from pathlib import Path

import jax

from gptjax.config import ConfigError


def abstract_like(tree):
    """Shapes, dtypes and shardings of a tree of arrays: what a restore needs to know."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """The numbered checkpoints of one stage.

    A save writes beside the older ones and is renamed when whole, so a kill at any moment leaves the last
    whole one to resume from.
    """

    def __init__(self, folder: Path, identity: dict[str, str], keep: int = 2, *, tidy: bool = True):
        """Opens or creates the folder.

        Args:
            folder: where the checkpoints lie.
            identity: facts stored with each checkpoint that must be equal at restore, such as the
                tokenizer's hash.
            keep: how many of the newest are kept.
            tidy: clear away what a killed run left half written; not where a run may be writing.
        """
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training
        self._folder, self._identity = Path(folder).resolve(), identity
        self._checkpointer = policies.Checkpointer(
            self._folder,
            cleanup_tmp_directories=tidy,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(keep),
        )

    def save(self, step: int, state) -> None:
        """Starts writing a checkpoint; the training loop goes on meanwhile."""
        self._checkpointer.save_checkpointables_async(step, {"state": state}, custom_metadata=self._identity)

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are kept, ascending."""
        return sorted(found.step for found in self._checkpointer.checkpoints)

    def restore_latest(self, like):
        """The newest checkpoint, or None when there is none; arguments and errors as `restore`."""
        latest = self._checkpointer.latest
        return None if latest is None else self.restore(latest.step, like)

    def restore(self, step: int, like):
        """The checkpoint of one of `steps()`.

        Args:
            step: which.
            like: a state of the same shapes, laid out as the restored one shall be.

        Raises:
            ConfigError: the checkpoint's identity differs.
        """
        stored = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
        check_identity(stored, self._identity, self._folder / str(step))
        return self._checkpointer.load_checkpointables(step, {"state": abstract_like(like)})["state"]

    def close(self) -> None:
        """Waits for the save under way and lets go of the folder."""
        self._checkpointer.close()


def check_identity(stored: dict[str, str], expected: dict[str, str], place: Path) -> None:
    """Refuse a checkpoint made with another tokenizer or from another base.

    Raises:
        ConfigError: naming the first fact that differs.
    """
    for name, value in expected.items():
        if stored.get(name) != value:
            raise ConfigError(
                f"the checkpoint {place} was written with {name} {str(stored.get(name))[:16]}..., but this "
                f"run has {value[:16]}...: use the one it was trained with, or start under another --name"
            )


def save_tree(folder: Path, tree) -> None:
    """Writes one finished tree, such as a stage's final parameters.

    Leaves are written one after the other as they lie, each to its own file: no second copy is in memory.
    Packed and compressed as the checkpoints are, they would take almost as much memory again and twice the
    time, and float32 weights shrink by a tenth.
    """
    from orbax.checkpoint import v1 as ocp

    # One leaf at a time; orbax refuses a leaf that just fits.
    limit = 1 + max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    context = ocp.Context()
    context.memory.transfer_concurrent_bytes = context.memory.write_concurrent_bytes = limit
    context.array.saving.use_ocdbt = context.array.saving.use_compression = False
    with context:
        ocp.save(Path(folder).resolve(), tree, overwrite=True)


def load_tree(folder: Path, abstract):
    """Reads a tree that `save_tree` wrote, with the shapes, dtypes and shardings of `abstract`."""
    from orbax.checkpoint import v1 as ocp

    return ocp.load(Path(folder).resolve(), abstract)
