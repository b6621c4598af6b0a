"""The cache: made once, whole or not there, made anew when it is damaged or its files change."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmjax.data import index as module
from mmjax.data.index import cache_folder, cached, content_hash, index, parallel
from mmjax.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    return path


class Builder:
    """Counts how often it builds."""

    def __init__(self, values=(3, 1, 2)):
        self.values, self.calls = values, 0

    def __call__(self):
        self.calls += 1
        return {"offset": np.array(self.values, np.int64), "none": np.zeros(0, np.uint8)}


def entry(cache):
    (folder,) = (cache / "index").iterdir()
    return folder


def test_arrays_are_built_once_and_come_back_equal(file):
    build = Builder()
    for _ in range(2):
        made = index("numbers", [file], build)
        assert made["offset"].tolist() == [3, 1, 2] and made["none"].shape == (0,)
    assert build.calls == 1


def test_another_kind_or_a_changed_file_is_built_anew(file):
    build = Builder()
    index("numbers", [file], build)
    index("others", [file], build)
    file.write_bytes(b"other")
    index("numbers", [file], build)
    os.utime(file, ns=(1, 1))
    index("numbers", [file], build)
    assert build.calls == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "no manifest", "no json"])
def test_a_damaged_entry_is_rebuilt_and_said(file, cache, capsys, damage):
    build = Builder()
    index("numbers", [file], build)
    array, manifest = entry(cache) / "offset.npy", entry(cache) / "manifest.json"
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-4])
    elif damage == "changed":
        array.write_bytes(array.read_bytes()[:-1] + b"x")
    elif damage == "removed":
        array.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    assert index("numbers", [file], build)["offset"].tolist() == [3, 1, 2]
    assert build.calls == 2
    assert capsys.readouterr().err.count("it is made again (numbers)") == 1
    index("numbers", [file], build)
    assert build.calls == 2 and len(list((cache / "index").iterdir())) == 1


def test_a_build_that_fails_leaves_nothing(file, cache):
    def fail():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        index("numbers", [file], fail)
    assert list((cache / "index").iterdir()) == []


def test_builders_at_the_same_time_end_with_one_entry(file, cache):
    both = threading.Barrier(4)

    def write(folder):
        (folder / "copy").write_bytes(b"content")
        both.wait()

    folders = []
    threads = [threading.Thread(target=lambda: folders.append(cached("copy", [file], write))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [entry(cache)] * 4 and (entry(cache) / "copy").read_bytes() == b"content"


def test_what_a_killed_builder_left_is_removed(file, cache):
    folder = cached("copy", [file], lambda folder: None)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = module._beside(folder)
    left = left.with_name(left.name.replace(f".{os.getpid()}.", f".{int(gone.stdout)}."))
    mine = module._beside(folder)
    left.mkdir()
    mine.mkdir()
    (folder / "manifest.json").unlink()
    cached("copy", [file], lambda folder: None)
    assert not left.exists() and mine.exists()


def test_a_cache_that_cannot_be_written_says_what_to_set(file, cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="cannot be written.*Set MMJAX_CACHE"):
        index("numbers", [file], Builder())
    monkeypatch.setenv("MMJAX_CACHE", str(cache.parent / "full"))

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device.*Set MMJAX_CACHE"):
        cached("copy", [file], full)

    def unreadable(folder):
        raise FileNotFoundError(errno.ENOENT, "a picture")

    with pytest.raises(FileNotFoundError):  # of the data, not of the cache
        cached("copy", [file], unreadable)


def test_the_cache_folder_is_in_the_home_unless_set(monkeypatch):
    monkeypatch.delenv("MMJAX_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/.cache/mmjax"


def whose(number):
    if number < 0:
        raise ConfigError(f"number {number}")
    return number, os.getpid()


def slow(number):
    time.sleep(0.02)
    return whose(number)


def test_small_work_stays_in_this_process():
    assert parallel(whose, [3, 1, 2], "numbers") == [(n, os.getpid()) for n in (3, 1, 2)]
    assert parallel(whose, [], "numbers") == []


def test_long_work_goes_to_processes_in_order_and_their_errors_come_back(monkeypatch):
    monkeypatch.setattr(module, "_cores", lambda: 2)
    made = parallel(slow, list(range(12)), "numbers", patience=0.001)
    assert [number for number, _ in made] == list(range(12))
    assert os.getpid() == made[0][1] != made[-1][1]
    with pytest.raises(ConfigError, match="number -1"):
        parallel(slow, [0, 1, 2, -1, 3], "numbers", patience=0.001)


def kill_others(item):
    parent, number = item
    if os.getpid() != parent:
        os._exit(1)
    return number


def test_without_helpers_the_process_goes_on_alone_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(module, "_cores", lambda: 2)
    items = [(os.getpid(), number) for number in range(5)]
    assert parallel(kill_others, items, "numbers", patience=-1.0) == list(range(5))
    assert "goes on alone" in capsys.readouterr().err


def test_the_content_hash_is_of_content_and_name_alone(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "a").write_bytes(b"same")
        (folder / "b").write_bytes(b"")
    os.utime(there / "a", ns=(1, 1))
    hashes = [content_hash([folder / "a", folder / "b"]) for folder in (here, there)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == hashlib.sha256().digest_size * 2
    assert content_hash([here / "b", here / "a"]) != hashes[0]
    (there / "a").write_bytes(b"sane")
    assert content_hash([there / "a", there / "b"]) != hashes[0]
    (there / "a").rename(there / "c")
    assert content_hash([there / "c", there / "b"]) != content_hash([there / "b", there / "b"])


def test_the_ends_of_a_large_file_count(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 100)
    monkeypatch.setattr(module, "_BLOCK", 4)
    data = bytearray(1000)
    hashes = []
    for place in (None, 0, 999):
        changed = bytearray(data)
        if place is not None:
            changed[place] = 1
        (tmp_path / "large").write_bytes(changed)
        hashes.append(content_hash([tmp_path / "large"]))
    (tmp_path / "large").write_bytes(bytes(1001))
    hashes.append(content_hash([tmp_path / "large"]))
    assert len(set(hashes)) == 4
