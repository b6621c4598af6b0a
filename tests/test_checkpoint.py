"""Checkpoints: exact bytes, other meshes, killed processes, damaged files, failed saves."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.checkpoint import CheckpointConfig, Checkpointer, SaveFailed
from mmjax.errors import ConfigError

DOCUMENTS = {
    "data": {"seed": 1, "step": 3},
    "meta": {"config": {"a": [1, 2.5, None]}},
    "processor": {"tokenizer": "ü\n"},
}


def state_at(step: int, width: int = 8) -> dict:
    """A state of every kind of leaf and container, a pure function of the step."""
    rng = np.random.default_rng(step)
    params = {
        "a/block_00/kernel": jnp.asarray(rng.normal(size=(width, 4)), jnp.float32),
        "b.c": jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask={n: True for n in params}))
    return {
        "params": params,
        "opt": jax.tree.map(lambda x: x + x.dtype.type(step), tx.init(params)),
        "ema": {},
        "step": jnp.asarray(step, jnp.int32),
        "rng": jax.random.key_data(jax.random.key(step)),
    }


def abstract(state, sharding=None):
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or default), state)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(checkpointer, step, state=None, **rest):
    return checkpointer.save(step, state_at(step) if state is None else state, **DOCUMENTS, **rest)


def test_every_item_comes_back_byte_for_byte(tmp_path):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    assert save(checkpointer, 3)
    checkpointer.close()
    restored = Checkpointer(tmp_path, CheckpointConfig()).restore(3, abstract(state_at(0)))
    assert_same(restored.state, state_at(3))
    assert restored[1:] == tuple(DOCUMENTS.values())
    assert (
        Checkpointer(tmp_path, CheckpointConfig(), read_only=True).read_json(3, "processor") == DOCUMENTS["processor"]
    )


def test_restore_onto_other_meshes_is_exact(tmp_path):
    assert jax.device_count() >= 8
    auto = (jax.sharding.AxisType.Auto,) * 2

    def sharding(shape):
        mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=auto, devices=jax.devices()[: shape[0] * shape[1]])
        return lambda x: NamedSharding(mesh, PartitionSpec("data", "fsdp") if x.ndim == 2 else PartitionSpec())

    of = sharding((4, 2))
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    save(checkpointer, 1, jax.tree.map(lambda x: jax.device_put(x, of(x)), state_at(1)))
    checkpointer.wait()
    for shape in ((2, 4), (1, 1)):
        of = sharding(shape)
        wanted = jax.tree.map(lambda x, of=of: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of(x)), state_at(1))
        found = checkpointer.restore(1, wanted).state
        assert_same(found, state_at(1))
        assert all(
            a.sharding == b.sharding for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        )


def test_a_part_of_a_state_restores_alone(tmp_path):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(asynchronous=False))
    save(checkpointer, 1)
    name = "a/block_00/kernel"
    found = checkpointer.restore_partial(1, {"params": {name: abstract(state_at(1))["params"][name]}})
    assert_same(found, {"params": {name: state_at(1)["params"][name]}})
    with pytest.raises(ConfigError, match="'params > missing' is not in the checkpoint"):
        checkpointer.restore_partial(1, {"params": {"missing": jax.ShapeDtypeStruct((1,), jnp.float32)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"params": {"b.c": s["params"]["b.c"]}},
            "'params > a/block_00/kernel' is only in the checkpoint",
        ),
        (lambda s: s | {"new": jnp.zeros(2)}, "'new' is not in the checkpoint"),
        (
            lambda s: s | {"rng": jnp.zeros(3, jnp.uint32)},
            r"'rng' is \[2\] uint32 in the checkpoint, \[3\] uint32 here",
        ),
        (
            lambda s: s | {"step": jnp.zeros((), jnp.float32)},
            r"'step' is \[\] int32 in the checkpoint, \[\] float32 here",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_another_structure_is_an_error_and_never_a_fallback(tmp_path, change, message):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(asynchronous=False))
    save(checkpointer, 1)
    save(checkpointer, 2)
    with pytest.raises(ConfigError, match=message):
        checkpointer.restore_latest(abstract(change(state_at(0))))
    assert checkpointer.steps() == [1, 2]


def test_donated_buffers_do_not_leak_into_an_asynchronous_save(tmp_path):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros((1000, 1000)))
    checkpointer.save(1, {"x": x}, **DOCUMENTS)
    for _ in range(20):
        x = step(x)
    checkpointer.wait()
    found = checkpointer.restore(1, {"x": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}).state["x"]
    np.testing.assert_array_equal(found, 1.0)


def test_saves_come_at_the_interval_and_the_newest_and_best_are_kept(tmp_path):
    config = CheckpointConfig(keep_latest=2, keep_best=1, best="vqa/accuracy")
    checkpointer = Checkpointer(tmp_path, config, every=2)
    figures = {2: 0.3, 4: 0.9, 6: 0.5, 8: None, 10: float("nan")}
    saved = [
        step
        for step in range(1, 11)
        if save(checkpointer, step, metrics={"vqa/accuracy": figures[step], "n": 1} if figures.get(step) else None)
    ]
    assert saved == [2, 4, 6, 8, 10]
    assert not save(checkpointer, 11)
    assert save(checkpointer, 11, force=True)
    assert not save(checkpointer, 11, force=True)
    checkpointer.close()
    for read_only in (False, True):
        again = Checkpointer(tmp_path, config, read_only=read_only)
        assert (again.steps(), again.best_step(), again.latest_step()) == ([4, 10, 11], 4, 11)
    with pytest.raises(SaveFailed, match="lies ahead"):
        Checkpointer(tmp_path, config).save(5, state_at(5), **DOCUMENTS)
    with pytest.raises(ConfigError, match="config.checkpoint.best: no figure 'vqa/accuracy'; there are vqa/acuracy"):
        save(Checkpointer(tmp_path, config), 12, metrics={"vqa/acuracy": 1.0})


@pytest.mark.parametrize("mode", ["min", ""], ids=["said", "by its name"])
def test_smallest_is_best_in_mode_min_and_of_a_loss(tmp_path, mode):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep_latest=1, best="loss", best_mode=mode))
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0], 1):
        save(checkpointer, step, {"x": jnp.ones(1)}, metrics={"loss": loss})
    checkpointer.close()
    assert (checkpointer.steps(), checkpointer.best_step()) == ([2, 4], 2)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_any_damaged_file_gives_the_exact_step_or_the_one_before_aloud(tmp_path, damage, caplog):
    original = tmp_path / "original"
    checkpointer = Checkpointer(original, CheckpointConfig(asynchronous=False))
    small = lambda step: {"x": jnp.full((64,), step, jnp.float32), "n": jnp.asarray(step, jnp.int32)}  # noqa: E731
    save(checkpointer, 1, small(1))
    save(checkpointer, 2, small(2))
    checkpointer.close()
    files = [p.relative_to(original) for p in sorted((original / "2").rglob("*")) if p.is_file()]
    fell_back = 0
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        if damage == "truncate":
            os.truncate(copy / file, (copy / file).stat().st_size // 2)
        else:
            (copy / file).unlink()
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            checkpointer = Checkpointer(copy, CheckpointConfig(asynchronous=False), read_only=True)
            checkpointer.latest_step()
            assert checkpointer.restore_latest(abstract(small(0)))[0] in (1, 2)
            assert (copy / "2").is_dir(), "a reader changed the folder"
            checkpointer = Checkpointer(copy, CheckpointConfig(asynchronous=False))
            documents = checkpointer.read_json(checkpointer.latest_step(), "meta")
            step, state = checkpointer.restore_latest(abstract(small(0)))
        assert documents == DOCUMENTS["meta"]
        assert_same(state, small(step))
        if step == 1:
            fell_back += 1
            assert "CHECKPOINT UNREADABLE" in caplog.text
            assert (copy / "2.corrupt").is_dir()
            assert checkpointer.steps() == [1]
            assert save(checkpointer, 2, small(2))  # the run comes by this step again
            assert_same(checkpointer.restore_latest(abstract(small(0)))[1], small(2))
    assert fell_back >= 5  # arrays, their manifest and metadata, and three JSON items


def test_when_nothing_can_be_read_the_error_says_why(tmp_path):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(asynchronous=False))
    with pytest.raises(ConfigError, match="found no checkpoint"):
        checkpointer.restore_latest(abstract(state_at(0)))
    save(checkpointer, 1)
    shutil.rmtree(tmp_path / "1" / "state")
    with pytest.raises(ConfigError, match="no checkpoint can be read. step 1"):
        checkpointer.restore_latest(abstract(state_at(0)))
    with pytest.raises(ConfigError, match="no checkpoint of step 7"):
        checkpointer.restore(7, abstract(state_at(0)))


def test_save_into_a_lost_folder_is_an_exception(tmp_path):
    folder = tmp_path / "run"
    checkpointer = Checkpointer(folder, CheckpointConfig())
    save(checkpointer, 1)
    checkpointer.wait()
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was: nothing can be written below it")
    with pytest.raises(SaveFailed, match=str(folder)):
        save(checkpointer, 2)
        checkpointer.wait()


def test_disk_that_fills_during_an_asynchronous_save_is_an_exception_and_the_old_step_stays(tmp_path):
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 500)), jnp.float32)
    assert checkpointer.save(1, {"x": x}, **DOCUMENTS)
    checkpointer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(SaveFailed):
            checkpointer.save(2, {"x": x}, **DOCUMENTS)
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Checkpointer(tmp_path, CheckpointConfig())
    step, state = again.restore_latest({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    assert step == 1
    np.testing.assert_array_equal(state["x"], x)


WRITER = """
import sys
import jax, jax.numpy as jnp
from mmjax.checkpoint import CheckpointConfig, Checkpointer
checkpointer = Checkpointer(sys.argv[1], CheckpointConfig())
f = jax.jit(lambda x: x + 1, donate_argnums=0)
step = checkpointer.latest_step() or 0
x = jnp.full((16, 64, 64), step, jnp.int32)
print("go", flush=True)
while True:
    x, step = f(x), step + 1
    checkpointer.save(step, {"x": x}, {"step": step}, {}, {})
"""


def test_latest_step_is_whole_after_kill_minus_nine_at_random_moments(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": ""}
    rng, reached = np.random.default_rng(0), 0
    wanted = {"x": jax.ShapeDtypeStruct((16, 64, 64), jnp.int32)}
    for _ in range(3):
        arguments = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
            assert writer.stdout.readline() == b"go\n"
            time.sleep(0.3 + rng.uniform(0, 0.5))
            writer.send_signal(signal.SIGKILL)
        checkpointer = Checkpointer(tmp_path, CheckpointConfig())
        step = checkpointer.latest_step()
        restored = checkpointer.restore(step, wanted)
        np.testing.assert_array_equal(restored.state["x"], step)
        assert restored.data == {"step": step}
        assert step > reached
        reached = step
        checkpointer.close()
    save(
        checkpointer := Checkpointer(tmp_path, CheckpointConfig()),
        reached + 1,
        {"x": jnp.zeros((16, 64, 64), jnp.int32)},
    )
    checkpointer.close()
    assert not [p.name for p in tmp_path.iterdir() if "tmp" in p.name], "leftovers of torn saves"
