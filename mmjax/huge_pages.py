"""Memory in pages of 2 MB: what XLA needs for a step comes from malloc, is given back after it, and mapped anew.

In pages of 4 KB that is a hundred thousand page faults a second on a CPU. glibc reads its settings before the program
begins, so the process replaces itself once (same process id, same arguments) with them in its environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OWN = Path("/proc/self/smaps_rollup")


def ask() -> None:
    """Begins the process anew with huge pages, unless it has them or its environment says otherwise (`hugetlb=0`).

    Other systems than Linux, and other C libraries than glibc, are left as they are.
    """
    told = os.environ.get(VARIABLE, "")
    if sys.platform == "linux" and SETTING not in told:
        os.environ[VARIABLE] = ":".join(filter(None, (told, f"{SETTING}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def found() -> str:
    """Whether this process gets them, in words, and why not."""
    if not _SYSTEM.is_file() or not _OWN.is_file():
        return "none: not Linux, or a kernel without them"
    block = bytearray(32 << 20)
    lines = _OWN.read_text().splitlines()
    size = next((line.split()[1] for line in lines if line.startswith("AnonHugePages")), "0")
    del block
    if int(size) >= 16 << 10:
        return "in use"
    return (
        f"not in use ({VARIABLE} is '{os.environ.get(VARIABLE, '')}', {_SYSTEM} says '{_SYSTEM.read_text().strip()}'): "
        "training on a CPU is slower. glibc needs 2.35 for it."
    )
