"""Checkpoints: every bit comes back, on any mesh, and only for the run that wrote them."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import ConfigError
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated
from gptjax.stages.sharded import create_state, state_shardings
from gptjax.training import checkpoint, integrity
from gptjax.training.checkpoint import Checkpoints, SaveFailed, load_tree, save_tree
from gptjax.training.digest import leaf_digests
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState

IDENTITY = {"tokenizer": "0123456789abcdef0123"}


def train_state(mesh, seed=0):
    """Parameters split over `fsdp` and moments that are not zero."""
    optimizer = make_optimizer(OptimizerConfig(), 10, {"w": ("embed", "mlp")})
    params = {"w": np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)}
    state = TrainState.create(params, optimizer)
    updates, moments = optimizer.update(params, state.opt_state, params)
    state = TrainState(jnp.int32(7), params, moments, jnp.int32(2))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    return jax.tree.map(lambda x: jax.device_put(x, split if x.shape else replicated(mesh)), state)


TINY = DecoderConfig(vocab_size=32, context_length=16, width=16, layers=2, heads=2, bias=False)


def model_state(mesh, seed):
    """A tiny model's parameters and moments, laid out as the rules say."""
    definition, rng = ModelDefinition(LanguageModel, TINY), np.random.default_rng(seed)
    optimizer = make_optimizer(OptimizerConfig(), 10, definition.axes)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), definition.abstract)
    drawn = jax.tree.map(lambda x: (9 * rng.normal(size=x.shape)).astype(x.dtype), state)
    return jax.tree.map(jax.device_put, drawn, state_shardings(definition, optimizer, mesh))


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def write(folder, state):
    writer = Checkpoints(folder, IDENTITY)
    assert writer.restore_latest(state) is None
    writer.save(7, state)
    writer.close()


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig())


def test_a_state_comes_back_bit_for_bit(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(reader.restore_latest(train_state(mesh, seed=1)), state)
    reader.close()


@pytest.mark.fault(name="reshard")
def test_a_state_comes_back_on_another_mesh(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    wide = train_state(make_mesh(MeshConfig(fsdp=8)), seed=1)
    reader = Checkpoints(tmp_path, IDENTITY)
    restored = reader.restore_latest(wide)
    reader.close()
    assert_same_bits(restored, state)
    assert restored.params["w"].sharding == wide.params["w"].sharding
    assert restored.params["w"].addressable_shards[0].data.shape == (1, 4)


@pytest.mark.fault(name="reshard")
@pytest.mark.slow
@pytest.mark.parametrize("axis", ["stage", "sequence"])
def test_a_model_comes_back_on_stages_and_sequences(tmp_path, mesh, axis):
    definition = ModelDefinition(LanguageModel, TINY)
    optimizer = make_optimizer(OptimizerConfig(), 10, definition.axes)
    state = create_state(definition, optimizer, mesh, key=jax.random.key(0))
    write(tmp_path, state)
    two = create_state(
        definition,
        optimizer,
        make_mesh(MeshConfig(**{axis: 2})),
        params=jax.tree.map(jnp.zeros_like, state.params),
    )
    reader = Checkpoints(tmp_path, IDENTITY)
    restored = reader.restore_latest(two)
    reader.close()
    assert leaf_digests(restored) == leaf_digests(state) != leaf_digests(two)
    kernel = restored.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    shards = kernel.addressable_shards
    assert len(shards) == 2 and len(shards[0].data) == (1 if axis == "stage" else 2)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, mesh, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "7").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write(tmp_path, train_state(mesh))
    place = tmp_path / "7"
    files = {str(path.relative_to(place)) for path in place.rglob("*")} | {"."}
    before = {path for path, named in synced if not named}
    under_way = min(before, key=len)
    assert Path(under_way).parent == tmp_path and Path(under_way).name.startswith("7.")
    assert files - set(COMMITTED) <= {os.path.relpath(path, under_way) for path in before}
    after = {path for path, named in synced if named}
    assert after == {str(place / name) for name in COMMITTED} | {str(place), str(tmp_path)}


def test_another_tokenizer_is_refused(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    for other in ({"tokenizer": "f" * 20}, IDENTITY | {"base": "abc"}):
        reader = Checkpoints(tmp_path, other)
        with pytest.raises(ConfigError, match=r"7 was written with (tokenizer 0123456789abcdef|base None)"):
            reader.restore_latest(state)
        reader.close()


def test_the_newest_are_kept(tmp_path, mesh):
    writer = Checkpoints(tmp_path, IDENTITY, keep=2)
    for step in (1, 2, 3):
        writer.save(step, train_state(mesh, seed=step))
    writer.close()
    assert sorted(int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()) == [2, 3]
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(reader.restore_latest(train_state(mesh)), train_state(mesh, seed=3))
    reader.close()


def test_a_saved_state_may_be_given_away_at_once(tmp_path, mesh):
    """The step donates its input, so a save under way must not read the arrays any more."""
    state, expected = train_state(mesh), jax.device_get(train_state(mesh))
    writer = Checkpoints(tmp_path, IDENTITY)
    writer.save(1, state)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state))
    writer.close()
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(jax.device_get(reader.restore_latest(train_state(mesh))), expected)
    reader.close()


def test_a_tree_comes_back(tmp_path, mesh):
    params = train_state(mesh).params
    save_tree(tmp_path / "params", params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    assert_same_bits(load_tree(tmp_path / "params", abstract), params)


def damage_flip(path):
    """One bit of the middle byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << (len(data) % 8)
    path.write_bytes(data)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_remove(path):
    path.unlink()


@pytest.fixture
def two_saves(tmp_path, mesh):
    """A folder with the checkpoints 1 and 2, and their states."""
    states, writer = [train_state(mesh, seed) for seed in (1, 2)], Checkpoints(tmp_path / "saves", IDENTITY)
    for step, state in enumerate(states, 1):
        writer.save(step, state)
    writer.close()
    return tmp_path / "saves", states


# Orbax writes these two when it commits, after the seal.
COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.mark.fault(name="damage")
@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove])
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(two_saves, tmp_path, damage, capsys):
    """Each file of the newest checkpoint in turn; the folder is made anew for each."""
    folder, states = two_saves
    names = [str(p.relative_to(folder / "2")) for p in (folder / "2").rglob("*") if p.is_file()]
    assert {"integrity.json", "state/_METADATA", "state/manifest.ocdbt", *COMMITTED} <= set(names)
    notices, like = [], train_state(make_mesh(MeshConfig()), seed=3)
    for number, name in enumerate(names):
        if name in COMMITTED and damage is not damage_remove:
            continue
        copy = Path(shutil.copytree(folder, tmp_path / str(number) / "saves"))
        damage(copy / "2" / name)
        reader = Checkpoints(copy, IDENTITY, notice=lambda event, **facts: notices.append((event, facts)))
        assert_same_bits(reader.restore_latest(like), states[0])
        assert reader.steps() == [1] and (copy.parent / "saves-damaged" / "2").is_dir()
        event, facts = notices.pop()
        assert event == "damaged" and facts["step"] == 2 and name.split("/")[-1] in facts["reason"], facts
        assert "it is set aside as" in capsys.readouterr().err
        reader.close()


@pytest.mark.fault(name="damage")
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_in_files_too_large_to_hash_are_found_in_the_arrays(tmp_path, mesh, monkeypatch, seed):
    """Not a bit of a wrong array comes back: the flip is found, or it changed nothing."""
    monkeypatch.setattr(integrity, "HASHED_BYTES", 0)
    state = train_state(mesh)
    write(tmp_path / "saves", state)
    data = [path for path in (tmp_path / "saves").rglob("d/*") if path.stat().st_size > 100]
    rng = np.random.default_rng(seed)
    found = 0
    for path in data:
        sound = path.read_bytes()
        for place in rng.integers(0, len(sound), 6):
            flipped = bytearray(sound)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            reader = Checkpoints(tmp_path / "saves", IDENTITY)
            try:
                assert_same_bits(reader.restore(7, train_state(mesh, seed=1)), state)
            except integrity.DamagedCheckpoint:
                found += 1
            reader.close()
        path.write_bytes(sound)
    assert found > 0


@pytest.mark.fault(name="damage")
def test_a_flipped_bit_in_what_is_not_sealed_is_found_or_changes_nothing(two_saves):
    folder, states = two_saves
    rng, like = np.random.default_rng(0), train_state(make_mesh(MeshConfig()), seed=3)
    for name in COMMITTED:
        path = folder / "2" / name
        sound = path.read_bytes()
        for place in rng.integers(0, len(sound), 12):
            flipped = bytearray(sound)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            reader = Checkpoints(folder, IDENTITY)
            try:
                assert_same_bits(reader.restore(2, like), states[1])
            except integrity.DamagedCheckpoint as error:
                assert name in str(error)
            reader.close()
        path.write_bytes(sound)


@pytest.mark.fault(name="damage")
def test_a_wrong_bit_in_an_array_is_named(tmp_path, mesh):
    write(tmp_path, train_state(mesh))
    file = tmp_path / "7" / integrity.FILE
    facts = json.loads(file.read_text())["facts"]
    facts["leaves"]["params/w"][2] ^= 1
    file.write_text(json.dumps({"facts": facts, "sha256": integrity._seal(facts)}))
    reader = Checkpoints(tmp_path, IDENTITY)
    message = "7 is damaged: 1 arrays have other bits than were saved, first params/w; no other is left"
    for _ in range(2):  # the last one is not set aside, or the next start would begin from nothing
        with pytest.raises(integrity.DamagedCheckpoint, match=message) as damaged:
            reader.restore_latest(train_state(mesh))
    assert damaged.value.exit_code == 65
    reader.close()


@pytest.mark.fault(name="reshard")
def test_the_digests_do_not_depend_on_the_mesh(tmp_path):
    """A model saved on 8 devices, restored and saved again on 4 x 2, on 2 and on 1: the same is stored."""
    meshes = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}, {"data": 2}, {}]
    stored, state = [], None
    for step, sizes in enumerate(meshes, 1):
        like = model_state(make_mesh(MeshConfig(**sizes)), seed=step)
        checkpoints = Checkpoints(tmp_path, IDENTITY, keep=4)
        restored = checkpoints.restore_latest(like)
        state = like if restored is None else restored
        checkpoints.save(step, state)
        checkpoints.close()
        leaves = integrity.read_facts(tmp_path / str(step))["leaves"]
        stored.append({name: digest for name, (_, _, digest) in leaves.items()})
        assert leaf_digests(state) == stored[-1] == stored[0]
        up = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
        split = 2, 16 // sizes.get("fsdp", 1), 64 // sizes.get("tensor", 1)
        assert up.addressable_shards[0].data.shape == split
    assert len(stored[0]) > 30 and stored[0] != leaf_digests(like)


def test_a_checkpoint_is_inspected_without_knowing_what_it_is_of(two_saves):
    folder, states = two_saves
    reader = Checkpoints(folder, {}, tidy=False)
    facts, position = reader.inspect(2)
    reader.close()
    assert position == int(states[1].step) and facts["step"] == 2 and facts["identity"] == IDENTITY


def test_a_state_of_another_shape_is_refused_naming_the_leaf(tmp_path, mesh):
    write(tmp_path, train_state(mesh))
    other = dataclasses.replace(train_state(mesh), params={"w": jnp.zeros((8, 5))})
    reader = Checkpoints(tmp_path, IDENTITY)
    with pytest.raises(
        ConfigError, match=r"params/w is float32\[8, 4\] in it and float32\[8, 5\] in this run"
    ):
        reader.restore_latest(other)
    assert reader.steps() == [7]
    reader.close()


class Disk:
    """Free space as told, instead of as it is."""

    def __init__(self, monkeypatch):
        self.free = 10**12
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=self.free))


@pytest.mark.fault(name="disk")
def test_without_room_nothing_is_written_and_the_second_time_is_the_last(tmp_path, mesh, monkeypatch, capsys):
    disk, state, notices = Disk(monkeypatch), train_state(mesh), []
    writer = Checkpoints(
        tmp_path, IDENTITY, notice=lambda event, **facts: notices.append((event, facts["step"]))
    )
    writer.save(1, state)
    assert writer.settle()
    disk.free = 100
    writer.save(2, state)
    assert not writer.settle()
    assert "step 2 is not saved" in (shown := capsys.readouterr().err) and "step 1 is intact" in shown
    disk.free = 10**12
    writer.save(3, state)  # there is room again: one failure is forgotten
    assert writer.settle()
    disk.free = 100
    writer.save(4, state)
    with pytest.raises(SaveFailed, match="2 checkpoints in a row .* make room .* step 3 is intact") as failed:
        writer.save(5, state)
    assert failed.value.exit_code == 74
    assert notices == [("save failed", 2), ("save failed", 4), ("save failed", 5)]
    writer.close()
    reader = Checkpoints(tmp_path, IDENTITY)
    assert reader.steps() == [1, 3]
    assert_same_bits(reader.restore_latest(train_state(mesh, seed=1)), state)
    reader.close()


@pytest.mark.fault(name="disk")
def test_a_write_that_fails_is_noted_and_cleared_away(tmp_path, mesh, monkeypatch):
    """It fails in the background, as a disk that fills up does."""
    writer, state = Checkpoints(tmp_path, IDENTITY), train_state(mesh)
    writer.save(1, state)
    assert writer.settle()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_facts", full)
    writer.save(2, state)
    assert not writer.settle()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    with pytest.raises(SaveFailed, match="No space left on device"):
        writer.save(3, state)
        writer.settle()
    monkeypatch.undo()
    writer.close()
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(reader.restore_latest(train_state(mesh, seed=1)), state)
    reader.close()
