"""Tests run on eight fake CPU devices, and share one tiny data set and few compiled functions."""

import json
import os
import shutil
import tempfile
from pathlib import Path

# Tiny programs take longer to compile than to run: LLVM does not optimise them (half the time of the suite).
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest


def pytest_configure(config):
    """Compiled programs are shared by the workers and by all commands that tests start; none outlives the suite."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="mmjax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}


# A worker takes a file at a time; one of these begun last would run alone for minutes.
LONGEST = ("test_real_sets.py", "test_train.py", "test_configs.py", "test_cli.py", "test_tune.py", "test_train_step.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """20 drawn pictures of 32 px: all.jsonl has captions, questions, a label and labels of each, talks.json (as LLaVA
    writes it) a conversation about each but every fifth, which is about nothing to see.
    """
    from mmjax.data.scenes import make_record

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "images").mkdir()
    talks = []
    with open(folder / "all.jsonl", "w") as file:
        for i in range(20):
            record = make_record("easy", "train", i, size=32)
            name = f"{i:02d}.png"
            (folder / "images" / name).write_bytes(record["image"])
            for text in record["texts"][: 2 + i % 3]:
                file.write(json.dumps({"image": name, "caption": text}) + "\n")
            for qa in record["qa"][: 3 + i % 2]:
                file.write(json.dumps({"image": name, "question": qa["question"], "answers": qa["answers"]}) + "\n")
            file.write(json.dumps({"image": name, "label": record["scene"][0]["shape"]}) + "\n")
            shapes = sorted({thing["shape"] for thing in record["scene"]})
            file.write(json.dumps({"image": name, "labels": shapes}) + "\n")
            said = []
            for qa in record["qa"][: 1 + i % 2]:
                said += [{"from": "human", "value": qa["question"]}, {"from": "gpt", "value": qa["answers"][0]}]
            if i % 5 == 4:
                talks.append({"id": i, "conversations": said})
            else:
                said[0]["value"] = "<image>\n" + said[0]["value"]
                talks.append({"id": i, "image": name, "conversations": said})
    (folder / "talks.json").write_text(json.dumps(talks))
    return folder


TOWER = {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64}
TASKS = {
    "contrastive": {"kind": "contrastive"},
    "contrastive_softmax": {"kind": "contrastive", "loss_kind": "softmax"},
    "captioning": {"kind": "captioning"},
    "vqa": {"kind": "vqa"},
    "vqa_generate": {"kind": "vqa", "answer": "generate"},
    "classification": {"kind": "classification"},
    "classification_many": {"kind": "classification", "labels": "many"},
    "matching": {"kind": "matching"},
}


@pytest.fixture(scope="session")
def tiny_mapping(tiny_set):
    """(task names, overrides) -> the plain config of a tiny model with those tasks on the tiny set."""
    from mmjax.config import merge, nest

    def make(*tasks, **overrides):
        base = {
            "data": {"root": str(tiny_set), "train": {"path": "all.jsonl", "batch_size": 8}, "holdout": 0.3,
                     "threads": 1},
            "processor": {"image": {"size": 32}, "tokenizer": {"kind": "bpe", "vocab_size": 320}, "length": 20,
                          "question_length": 16, "answer_length": 4, "questions": 2},
            "model": {
                "embed_dim": 32,
                "patch_encoder": {**TOWER, "patch": 8},
                "text_encoder": {**TOWER, "pool": "mean"},
                "fusion": {**TOWER, "name": "cross_attention"},
                "decoder": {**TOWER},
            },
            "tasks": {name: TASKS.get(name, {"kind": name}) for name in tasks},
            "optimizer": {"lr": 1e-3, "warmup": "0 steps"},
            "train": {"steps": 6, "log_every": 1},
            "eval": {"every": "", "start": False},
            "mesh": {"data": 1},
            "checkpoint": {"every": "2 steps"},
        }  # fmt: skip
        return merge(base, nest({k.replace("__", "."): v for k, v in overrides.items()}))

    return make


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """mapping -> a config file that returns it."""
    folder = tmp_path_factory.mktemp("configs")

    def write(mapping):
        file = folder / f"c{len(list(folder.iterdir()))}.py"
        file.write_text(f"import json\ndef get_config():\n    return json.loads({json.dumps(mapping)!r})\n")
        return file

    return write


@pytest.fixture(scope="session")
def small(tiny_mapping):
    """overrides -> the mapping of a one-layer patch encoder with a class head, on an fsdp mesh of eight devices."""
    from mmjax.config import merge

    def make(over=None, **overrides):
        mapping = tiny_mapping("classification", **overrides)
        mapping["model"] = {"patch_encoder": {**TOWER, "patch": 8}}
        mapping["mesh"] = {"fsdp": 8}
        mapping["optimizer"] = {"lr": 0.01, "warmup": "0 steps"}
        return merge(mapping, over or {})

    return make


@pytest.fixture(scope="session")
def base(small, run_file, tmp_path_factory):
    """The workdir of a full run of four steps."""
    workdir = tmp_path_factory.mktemp("base")
    file = run_file(small(train__steps=4))
    from mmjax import cli

    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    return workdir


LORA = {"adapt": {"lora": ["patch_encoder/.*"], "rank": 2, "alpha": 4}, "optimizer": {"train": ["head_.*"]}}


@pytest.fixture(scope="session")
def adapted(small, base, run_file, tmp_path_factory):
    """(workdir, config file) of a LoRA run on top of `base`: 6 steps, a checkpoint every second."""
    workdir = tmp_path_factory.mktemp("adapted")
    file = run_file(small({**LORA, "init": {"path": str(base)}}))
    from mmjax import cli

    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    return workdir, file


def stored(workdir, step):
    """{path in the state: array} of a checkpoint as it lies there."""
    import jax
    import numpy as np

    from mmjax.checkpoint import CheckpointConfig, Checkpointer

    checkpoints = Checkpointer(Path(workdir) / "checkpoints", CheckpointConfig(), read_only=True)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), checkpoints.leaves(step))
    state = checkpoints.restore_partial(step, abstract)
    checkpoints.close()
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}


def planned(file):
    """(config, model, data, plan) of a config file."""
    from mmjax import assemble, sharding
    from mmjax.experiment import load

    config, _ = load(str(file), {})
    data = assemble.open_data(config)
    model = assemble.build_model(config, assemble.fit_processor(config, data))
    return config, model, data, assemble.make_plan(config, model, data, sharding.make_mesh(config.mesh))


@pytest.fixture(scope="session")
def trained(tiny_mapping, tmp_path_factory):
    """A workdir of a short run with every kind of output, and its config file."""
    from mmjax import cli

    workdir = tmp_path_factory.mktemp("trained")
    mapping = tiny_mapping("vqa", "contrastive", "captioning", "classification", "matching", train__ema=0.5)
    mapping["checkpoint"] = {"every": "2 steps", "best": "validation/vqa/accuracy"}
    mapping["eval"] = {"every": "3 steps", "start": True, "batch_size": 8, "examples": 2}
    file = tmp_path_factory.mktemp("config") / "config.py"
    file.write_text(f"def get_config():\n    return {mapping!r}\n")
    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir), "--config.mesh.data=0"]) == 0
    return workdir, file
