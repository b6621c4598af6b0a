"""What is installed, whether memory comes in huge pages, which devices answer, and whether folders can be written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
import time
from pathlib import Path

from mmjax import huge_pages

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers",
            "tensorflow-cpu", "tensorflow", "tensorflow-datasets", "array_record",
            "clu", "ml_collections", "tensorboard", "pillow")  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions by package name; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def doctor() -> int:
    """Prints one line a check, with "ok" or what to do; returns 0 when all passed and 1 otherwise."""
    checks = [_python(), _packages(), _huge_pages(), _devices(), _collectives(), _tensorflow(), *_folders()]
    for passed, name, text in checks:
        print(f"{'ok  ' if passed else 'FAIL'}  {name:<14} {text}")
    return 0 if all(passed for passed, _, _ in checks) else 1


def _python() -> tuple[bool, str, str]:
    return True, "python", f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"


def _huge_pages() -> tuple[bool, str, str]:
    return True, "huge pages", huge_pages.found()


def _packages() -> tuple[bool, str, str]:
    found = versions()
    needed = [n for n in ("jax", "flax", "optax", "orbax-checkpoint", "transformers") if n not in found]
    text = ", ".join(f"{k} {v}" for k, v in found.items())
    return (
        not needed,
        "packages",
        text if not needed else f"missing: {', '.join(needed)}. Run launch/quickstart.sh or pip install.",
    )


def _devices() -> tuple[bool, str, str]:
    import jax
    import jax.numpy as jnp

    begun = time.perf_counter()
    x = jnp.ones((512, 512))
    jax.block_until_ready(x @ x)
    kinds = {d.device_kind for d in jax.devices()}
    seconds = time.perf_counter() - begun
    text = f"{jax.device_count()} x {', '.join(sorted(kinds))} ({jax.default_backend()}), first matmul {seconds:.1f} s"
    return True, "devices", f"{text}, {jax.process_count()} process(es)"


def _collectives() -> tuple[bool, str, str]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mmjax import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig())
    rows = sharding.put_batch({"x": np.ones((jax.device_count(), 1), np.float32)}, mesh, jax.device_count())["x"]
    total = float(sharding.jit(mesh, jnp.sum, out_shardings=sharding.replicated(mesh))(rows))
    return (
        total == jax.device_count(),
        "collectives",
        f"sum over {dict(mesh.shape)} gives {total:g} of {jax.device_count()}",
    )


def _tensorflow() -> tuple[bool, str, str]:
    present = importlib.util.find_spec("tensorflow") is not None
    return (
        True,
        "tensorflow",
        "present: tf.data input works" if present else "absent: tf.data input does not work; predict does",
    )


def _folders() -> list[tuple[bool, str, str]]:
    from mmjax.data.scenes import cache_folder

    checks = []
    for name, folder in (("cache", cache_folder()), ("temporary", Path(tempfile.gettempdir()))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                block = b"\0" * (16 << 20)
                begun = time.perf_counter()
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
                rate = len(block) / (time.perf_counter() - begun) / 1e6
            checks.append((True, name, f"{folder} can be written, {rate:,.0f} MB/s"))
        except OSError as error:
            checks.append(
                (False, name, f"{folder} cannot be written ({error}). Set MMJAX_CACHE or TMPDIR to a folder that can.")
            )
    return checks
