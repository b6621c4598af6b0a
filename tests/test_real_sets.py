"""One epoch of training on every set of ../shared/data (or MMJAX_SHARED_DATA) as it lies there, nothing converted."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.metrics import read_lines

SHARED = Path(os.environ.get("MMJAX_SHARED_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
CAPTIONS, QUESTIONS = {"contrastive": {}}, {"vqa": {}}
COCO = "annotations/{}_train2017.json"
SETS = {  # the source, its tasks, rows; sound and video are not read
    "flickr8k": ({"path": "flickr8k/train.csv"}, CAPTIONS, 6000),
    "flickr8k_native": ({"path": "flickr8k_native/captions.tsv"}, CAPTIONS, 200),
    "coco_captions": ({"path": f"coco_mini/{COCO.format('captions')}"}, {"captioning": {}}, 80),
    "coco_labels": ({"path": f"tiny_coco/{COCO.format('instances')}"}, {"classification": {"labels": "many"}}, 50),
    "nlvr": ({"path": "nlvr/dev/dev.json"}, QUESTIONS, 5934),
    "easy_vqa": ({"path": "easy_vqa/train"}, QUESTIONS, 4000),
    "daquar": ({"path": "daquar/train.jsonl"}, {"vqa": {"answer": "generate"}}, 794),
    "cifar10": ({"path": "cifar10/train"}, {"classification": {}}, 5000),
    "llava": ({"path": "chat/llava.json"}, {"chat": {}}, 80),
    "messages": ({"path": "chat/messages.jsonl"}, {"chat": {}}, 80),
}  # fmt: skip


RUN = "import sys; from mmjax import cli; sys.exit(max(cli.main(a.split(' ')) for a in sys.argv[1:]))"


def batch_of(rows: int) -> int:
    return 500 if rows > 1000 else 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{set: workdir}, all trained by one process that has one device: eight take eight times as long to compile for."""
    folder = tmp_path_factory.mktemp("runs")
    commands = []
    for name, (source, tasks, rows) in SETS.items():
        mapping = {
            "data": {"root": str(SHARED), "train": {**source, "batch_size": batch_of(rows)}, "holdout": 0.0},
            "processor": {
                "image": {"size": 32, "train_path": "fast"},
                "augment": {"crop_area": [0.5, 1.0]},
                "tokenizer": {"kind": "bpe", "vocab_size": 512},
                "questions": 1,
                "chat_length": 128,
            },
            "model": {
                "embed_dim": 16,
                "patch_encoder": {**TOWER, "patch": 16},
                "text_encoder": {**TOWER, "pool": "mean"},
                "fusion": {**TOWER, "name": "cross_attention"},
                "decoder": TOWER,
            },
            "tasks": tasks,
            "optimizer": {"lr": 1e-3},
            "train": {"epochs": 1, "log_every": 1},
            "eval": {"every": "", "start": False},
        }
        file = folder / f"{name}.py"
        file.write_text(f"def get_config():\n    return {mapping!r}\n")
        commands.append(f"train --config {file} --workdir {folder / name}")
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": flags, "MMJAX_CACHE": str(folder / "cache")}
    run = subprocess.run([sys.executable, "-c", RUN, *commands], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent: no epoch on the real sets is trained")
@pytest.mark.parametrize("name", SETS)
def test_an_epoch_of_each_set_as_it_lies_there(name, runs):
    rows = SETS[name][2]
    logged = [x for x in read_lines(runs / name / "metrics.jsonl") if "lr" in x]
    assert [x["step"] for x in logged] == list(range(1, round(rows / batch_of(rows)) + 1))
    assert all(math.isfinite(x["loss"]) for x in logged)
    assert not (runs / name / "bad_records.jsonl").exists()
