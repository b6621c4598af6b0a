"""Real processes: together they read the batches that one process reads, whatever their number, threads and start."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

BATCH, STEPS = 8, 5
WORKER = """
import json, sys
folder, number, processes, address, start, threads = sys.argv[1:]
import jax
jax.config.update("jax_platforms", "cpu")
if int(processes) > 1:
    jax.distributed.initialize(address, int(processes), int(number))
from mmjax import assemble, sharding
from mmjax.experiment import from_mapping
config = from_mapping(json.loads(open(folder + "/config.json").read()))
data = assemble.open_data(config)
processor = assemble.fit_processor(config, data)
mesh = sharding.make_mesh(config.mesh)
rows = sharding.local_rows(mesh, 8)
pipeline = assemble.train_pipelines(config, data, processor, mesh)["main"]
for step, batch in enumerate(pipeline.batches(int(start), 5), int(start)):
    sums = batch["image"].reshape(len(rows), -1).astype(int).sum(1)
    words = [text.tolist() for text in batch["text"]]
    print("BATCH", json.dumps([step, rows.tolist(), batch["row"].tolist(), words, sums.tolist()]))
"""


LAYOUTS = {
    "mixture": {},
    "buckets": {"buckets": [8]},
    "packed": {"stream": "", "path": "two.csv", "pack_tokens": 24, "pack_rows": 3},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, tmp_path_factory):
    """Two sources, mixed, mixed in buckets, or one of them packed, in pictures of their own aspect."""
    root = tmp_path_factory.mktemp(request.param)
    for name, n in (("one", 10), ("two", 25)):
        lines = ["image,caption"]
        for i in range(n):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 12 + i, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{name}{i}.png")
            lines += [f"{name}{i}.png,caption {k} of {name} {i}{i % 4 * ' and more'}" for k in range(3)]
        (root / f"{name}.csv").write_text("\n".join(lines))
    sources = {"one": {"path": "one.csv", "weight": 1}, "two": {"path": "two.csv", "weight": 2}}
    native = {"aspect": "native", "tokens": 5} if request.param == "packed" else {}
    train = {"batch_size": BATCH, "stream": "main", **LAYOUTS[request.param], **({} if native else sources)}
    config = {
        "data": {"root": str(root), "train": train, "holdout": 0},
        "processor": {"image": {"size": 8, **native}, "augment": {"crop_area": [0.5, 1], "flip": True}, "length": 12},
        "model": {"embed_dim": 8, "patch_encoder": {"width": 8, "depth": 1, "heads": 1, "patch": 8},
                  "text_encoder": {"width": 8, "depth": 1, "heads": 1}},
        "tasks": {"contrastive": {}},
        "train": {"steps": STEPS},
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root


def read(folder, processes=1, start=0, threads=2):
    """{(step, position in the batch): (its rows, captions, sum of the pixels)} of all processes together."""
    config = json.loads((folder / "config.json").read_text())
    config["data"]["threads"] = threads
    (folder / "config.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "MMJAX_CACHE": str(folder / "cache"),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, folder, str(p), str(processes), address, str(start), str(threads)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for p in range(processes)
    ]
    found = {}
    for worker in workers:
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err[-3000:]
        for line in out.splitlines():
            if line.startswith("BATCH"):
                step, positions, *arrays = json.loads(line[5:])
                for position, *what in zip(positions, *arrays, strict=True):
                    assert (step, position) not in found
                    found[step, position] = what
    return found


@pytest.fixture(scope="module")
def truth(folder):
    whole = read(folder)
    assert len(whole) == BATCH * STEPS
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_real_processes_read_what_one_reads(folder, truth, processes):
    assert read(folder, processes) == truth


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_reads_on(folder, truth):
    assert read(folder, 2, start=3, threads=1) == {k: v for k, v in truth.items() if k[0] >= 3}
