"""Asynchronous, atomic, verified checkpoints through Orbax; the only file that knows its interface.

Orbax is capped below the next minor version in setup.cfg because this interface (`v1`) still moves.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from gptjax.errors import DISK, UserError
from gptjax.training.agreement import everywhere
from gptjax.training.digest import leaf_digests
from gptjax.training.integrity import (
    AT_COMMIT,
    DamagedCheckpoint,
    check_digests,
    check_identity,
    check_leaves,
    leaf_facts,
    read_facts,
    to_disk,
    write_facts,
)

FAILURES_ALLOWED = 2
# The largest share of a state that its files may take: what is kept beside the arrays is small.
_SPARE = 1.1


class SaveFailed(UserError):
    """Checkpoints cannot be written; those that are there are whole."""

    exit_code = DISK


def abstract_like(tree):
    """Shapes, dtypes and shardings of a tree of arrays: what a restore needs to know."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """The numbered checkpoints of one stage.

    A save writes beside the older ones and is renamed when whole, so a kill at any moment leaves the last
    whole one to resume from. Facts that are sealed with it (`integrity.py`) tell at restore whether every bit
    is as it was.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, str],
        keep: int = 2,
        *,
        tidy: bool = True,
        about: dict[str, str] | None = None,
        notice: Callable = lambda event, **facts: None,
    ):
        """Opens or creates the folder.

        Args:
            folder: where the checkpoints lie.
            identity: facts stored with each checkpoint that must be equal at restore, such as the
                tokenizer's hash.
            keep: how many of the newest are kept.
            tidy: clear away what a killed run left half written; not where a run may be writing.
            about: further facts stored with each checkpoint.
            notice: `(event, **facts)`, told of every save that fails and every checkpoint that is set aside.
        """
        self._folder, self._identity, self._keep = Path(folder).resolve(), identity, keep
        self._about, self._notice = about or {}, notice
        self._failures, self._under_way, self._facts = 0, None, {}
        self._checkpointer = self._open(tidy)

    def _open(self, tidy: bool):
        from orbax.checkpoint import v1 as ocp

        def seal():
            """Orbax calls it, on one process, when all is written and before the folder gets its name."""
            for folder in self._unfinished(self._under_way):
                write_facts(folder, self._facts)

        context, policies = ocp.Context(), ocp.training
        context.asynchronous.post_finalization_callback = seal
        return policies.Checkpointer(
            self._folder,
            context=context,
            cleanup_tmp_directories=tidy,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(self._keep),
        )

    def save(self, step: int, state) -> None:
        """Starts writing a checkpoint; the training loop goes on meanwhile.

        Raises:
            SaveFailed: this save and the one before it failed.
        """
        self.settle()
        # Not to overtake what the disk can take: a state of which a part lies elsewhere counts whole.
        needed = int(_SPARE * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        free = shutil.disk_usage(self._folder).free
        if not everywhere(free >= needed):
            self._fail(step, f"it takes {_gib(needed)} and {_gib(free)} are free")
            return
        leaves = leaf_facts(state, leaf_digests(state))
        self._under_way = step
        self._facts = self._about | {"step": step, "identity": self._identity, "leaves": leaves}
        try:
            self._checkpointer.save_checkpointables_async(step, {"state": state})
        except jax.errors.JaxRuntimeError:
            raise  # no fault of the disk: another process is gone, or memory is short
        except Exception as error:
            self._fail(step, error)

    def poll(self) -> None:
        """Notes a save that has failed meanwhile, without waiting for one that goes on."""
        if self._under_way is not None and jax.process_count() == 1:
            if not self._checkpointer.is_saving_in_progress():
                self.settle()

    def settle(self) -> bool:
        """Waits for the save under way; says whether the last one that was asked for is there."""
        if self._under_way is None:
            return self._failures == 0
        reason = ""
        try:
            self._checkpointer.wait()
            if jax.process_index() == 0:
                place = self._folder / str(self._under_way)
                to_disk(*(place / name for name in AT_COMMIT), place, self._folder)
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # libraries say in many ways that a disk is full
            reason = error
        if not everywhere(not reason):
            self._fail(self._under_way, reason or "another process could not write its part")
            return False
        self._under_way, self._failures = None, 0
        return True

    def _fail(self, step: int, reason) -> None:
        """Counts a failed save and clears away what there is of it."""
        self._under_way, self._failures = None, self._failures + 1
        reason = str(reason).split("\n")[0][:300]
        if jax.process_index() == 0:
            for folder in self._unfinished(step):
                shutil.rmtree(folder, ignore_errors=True)
        self._checkpointer = self._open(tidy=False)  # the old one would raise the same error for ever
        kept = self.steps()
        intact = f"step {kept[-1]} is intact" if kept else "there is none yet"
        print(f"WARNING: step {step} is not saved in {self._folder} ({reason}); {intact}", file=sys.stderr)
        self._notice("save failed", step=step, reason=reason)
        if self._failures >= FAILURES_ALLOWED:
            raise SaveFailed(
                f"{self._failures} checkpoints in a row could not be written to {self._folder} ({reason}): "
                f"make room there and run the same command again; {intact}"
            )

    def _unfinished(self, step: int) -> list[Path]:
        return list(self._folder.glob(f"{step}.orbax-checkpoint-tmp*"))

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are kept, ascending."""
        return sorted(found.step for found in self._checkpointer.checkpoints)

    def restore_latest(self, like):
        """The newest whole checkpoint, or None when there is none.

        One that is damaged is set aside with a message and the one before it is taken; the last one there is
        stays where it is.

        Raises:
            DamagedCheckpoint: no whole one is left.
            ConfigError: as `restore`.
        """
        steps = self.steps()
        while steps:
            try:
                return self.restore(steps[-1], like)
            except DamagedCheckpoint as error:
                if len(steps) == 1:
                    raise DamagedCheckpoint(
                        f"{error}; no other is left: to start from the beginning, delete {self._folder}"
                    ) from error
                self._set_aside(steps.pop(), error)
        return None

    def restore(self, step: int, like):
        """The checkpoint of one of `steps()`, every bit checked.

        Args:
            step: which.
            like: a state of the same shapes, laid out as the restored one shall be.

        Raises:
            ConfigError: the checkpoint's identity, or a leaf's shape or dtype, differs.
            DamagedCheckpoint: a file or an array is not as it was saved.
        """
        place = self._folder / str(step)
        facts = _together(place, lambda: read_facts(place))
        check_identity(facts["identity"], self._identity, place)
        check_leaves(facts["leaves"], like, place)
        state = _together(place, lambda: self._load(step, abstract_like(like)))
        check_digests(facts, state, place)
        return state

    def inspect(self, step: int) -> tuple[dict, int]:
        """(facts, `step` in the state) of a checkpoint, every bit checked, without knowing what it is of.

        Raises:
            DamagedCheckpoint: as `restore`.
        """
        place = self._folder / str(step)
        facts = _together(place, lambda: read_facts(place))
        stored = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored)
        state = _together(place, lambda: self._load(step, like))
        check_digests(facts, state, place)
        return facts, int(state["step"])

    def _load(self, step: int, abstract):
        return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]

    def _set_aside(self, step: int, reason) -> None:
        aside = self._folder.with_name(f"{self._folder.name}-damaged")
        target = free_name(aside, step)
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(target)
        everywhere(True)  # nobody looks before it is moved
        self._checkpointer.reload()
        print(f"WARNING: {reason}; it is set aside as {target}, the one before it is used", file=sys.stderr)
        self._notice("damaged", step=step, reason=str(reason), moved_to=target.name)

    def close(self) -> None:
        """Waits for the save under way and lets go of the folder."""
        self.settle()
        self._checkpointer.close()


def _together(place: Path, read: Callable):
    """What every process reads; if one cannot, none does.

    Raises:
        DamagedCheckpoint: naming the place and, where it is known here, the reason.
    """
    result, reason = None, None
    try:
        result = read()
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise  # no fault of the checkpoint
    except Exception as error:  # whatever a library says of a file that it cannot make sense of
        reason = str(error).split("\n")[0][:300] or type(error).__name__
    if not everywhere(reason is None):
        reason = reason or "another process cannot read it"
        raise DamagedCheckpoint(f"the checkpoint {place} is damaged: {reason}")
    return result


def free_name(folder: Path, step: int) -> Path:
    """A name in the folder for a checkpoint that is moved there: its step, or "step.1" and so on."""
    taken = {path.name for path in folder.glob("*")}
    names = (f"{step}{f'.{count}' if count else ''}" for count in range(len(taken) + 1))
    return folder / next(name for name in names if name not in taken)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f} GiB"


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
