"""Huge pages: asked for once, what the environment says already is kept, arguments too."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import os, sys; from mmjax import huge_pages as h; h.ask(); print(h.found()); print(sys.argv)"


def _run(tunables: str) -> list[str]:
    env = {**os.environ, "GLIBC_TUNABLES": tunables}
    code = [sys.executable, "-c", CODE, "two words", "--flag=('a',)"]
    return subprocess.run(code, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_a_process_begins_anew_with_huge_pages_and_its_own_arguments():
    system = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not system.is_file() or "[never]" in system.read_text():
        pytest.skip("this kernel gives no huge pages")
    library, version = platform.libc_ver()
    if library != "glibc" or [*map(int, version.split("."))] < [2, 35]:
        pytest.skip("this C library cannot ask for huge pages (glibc can from 2.35 on)")
    found, arguments = _run("glibc.malloc.arena_max=2")
    assert found == "in use" and arguments == "['-c', 'two words', \"--flag=('a',)\"]"
    if "[madvise]" in system.read_text():
        assert _run("glibc.malloc.hugetlb=0")[0].startswith("not in use (GLIBC_TUNABLES is 'glibc.malloc.hugetlb=0'")


def test_other_settings_are_kept_and_nothing_is_begun_twice(monkeypatch):
    from mmjax import huge_pages

    begun = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "execv", lambda program, arguments: begun.append((program, arguments)))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.ask()
    huge_pages.ask()
    assert begun == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
