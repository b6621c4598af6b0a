"""safetensors: what the `safetensors` package writes and reads; a fault of a folder is named."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmjax.errors import ConfigError
from mmjax.pretrained.tensor_files import INDEX, WHOLE, ToWrite, open_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 5)).astype(np.float32),
    "b": RNG.normal(size=(7,)).astype(np.float16),
    "c.scale": np.array(2.5, np.float32),
    "d": np.arange(6).reshape(1, 6),
    "e": np.zeros((0, 4), np.float32),
}


def written(folder, arrays=ARRAYS, shard_bytes=10**9):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [ToWrite(k, a.dtype, a.shape, lambda a=a: a) for k, a in arrays.items()]
    return write_tensors(folder, tensors, shard_bytes)


def assert_equal(tensors, arrays=ARRAYS):
    assert tensors.keys() == arrays.keys()
    for key, array in arrays.items():
        found = tensors[key].map()
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read(tmp_path):
    written(tmp_path / "ours")
    theirs = safetensors.numpy.load_file(tmp_path / "ours" / WHOLE)
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[key], array)
    (tmp_path / "theirs").mkdir()
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs" / WHOLE)
    assert_equal(open_tensors(tmp_path / "theirs", "x"))


def test_bfloat16_keeps_its_bits(tmp_path):
    arrays = {"w": RNG.normal(size=(4, 4)).astype(ml_dtypes.bfloat16)}
    written(tmp_path, arrays)
    assert_equal(open_tensors(tmp_path, "x"), arrays)


def test_shards_stand_in_an_index_and_read_back(tmp_path):
    files = written(tmp_path, shard_bytes=60)
    assert [f.name for f in files] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)] + [INDEX]
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == sum(
        a.nbytes for a in ARRAYS.values()
    )
    assert_equal(open_tensors(tmp_path, "x"))


def edit_index(folder, change):
    told = json.loads((folder / INDEX).read_text())
    change(told["weight_map"])
    (folder / INDEX).write_text(json.dumps(told))


def missing_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def key_in_two(folder):
    first = folder / "model-00001-of-00003.safetensors"
    (folder / "model-00003-of-00003.safetensors").write_bytes(first.read_bytes())


def not_in_the_index(folder):
    edit_index(folder, lambda placed: placed.pop("b"))


def not_in_the_file(folder):
    edit_index(folder, lambda placed: placed.update({"ghost": "model-00001-of-00003.safetensors"}))


def cut_off(folder):
    file = folder / "model-00001-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def no_index(folder):
    (folder / INDEX).unlink()


def torch_only(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (missing_shard, r"no file '.*model-00002-of-00003.safetensors', in which .* has \d tensors"),
        (key_in_two, r"'a.weight' is in two files, model-00001-of-00003.safetensors and model-00003"),
        (not_in_the_index, r"'b' is in model-.*, but model.safetensors.index.json does not name it"),
        (not_in_the_file, r"places the tensor 'ghost' in model-00001-of-00003.safetensors, which does not have it"),
        (cut_off, r"model-00001-of-00003.safetensors' is cut off: the tensor 'a.weight' ends at byte"),
        (no_index, r"has 3 shards .* but no model.safetensors.index.json"),
        (torch_only, r"pytorch_model.bin, but no safetensors. Convert it where torch is installed:\npython -c"),
    ],
)
def test_a_fault_is_named(harm, named, tmp_path):
    written(tmp_path, shard_bytes=60)
    harm(tmp_path)
    with pytest.raises(ConfigError, match=named):
        open_tensors(tmp_path, "config.init.path")


def test_what_is_no_safetensors_file_is_named(tmp_path):
    (tmp_path / WHOLE).write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match="is no safetensors file"):
        open_tensors(tmp_path, "x")
