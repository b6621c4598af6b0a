"""The folders beside `tests/fixtures/make_pretrained.py`: our model of each, and what torch computed with it."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import describe_export
from mmjax.pretrained.folder import Folder, open_folder
from mmjax.pretrained.tensor_files import ToWrite, open_tensors, write_tensors
from mmjax.pretrained.weights import Weights, described_model

# Folders of other sizes and seeds can be tried: MMJAX_PRETRAINED_FIXTURES=FOLDER pytest tests/pretrained
FOLDER = Path(os.environ.get("MMJAX_PRETRAINED_FIXTURES") or Path(__file__).parents[1] / "fixtures" / "pretrained")
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/expected.npz"))
OTHER_NAMES = sorted(path.parent.name for path in FOLDER.glob("*/other_names.*"))
TOKENS = 32


class Loaded(NamedTuple):
    folder: Folder
    model: Multimodal
    params: dict[str, Any]  # flat


def expected(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs) of torch."""
    found = np.load(FOLDER / name / "expected.npz")
    arrays = {key: found[key] for key in found.files if key != "case"}
    outputs = {key.removeprefix("out_"): value for key, value in arrays.items() if key.startswith("out_")}
    return {key: value for key, value in arrays.items() if not key.startswith("out_")}, outputs


@functools.cache
def load(path: Path, image_size: tuple[int, int] | None = None) -> Loaded:
    """Our model and parameters of a folder, on one device; positions resized to pictures of another size."""
    folder = open_folder(path, "config.init.path")
    model, weights = described_model(folder.described), Weights(folder)
    shapes = dict(weights.shapes)
    if image_size:
        model = model.clone(image_size=image_size)
        patch, width = model.config.patch_encoder.patch, model.config.patch_encoder.width
        shapes["patch_encoder/position"] = (image_size[0] // patch, image_size[1] // patch, width)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device) for name, shape in shapes.items()}
    begun = {name: jnp.zeros(()) for name in folder.described.dropped}
    return Loaded(folder, model, weights.read(wanted) | begun)


def with_other_names(name: str, target: Path) -> Path:
    """A copy of a folder with the tensors named as in other releases."""
    target.mkdir(parents=True)
    shutil.copy(FOLDER / name / "config.json", target)
    whole = FOLDER / name / "other_names.safetensors"
    if whole.exists():
        shutil.copy(whole, target / "model.safetensors")
        return target
    names, stored = json.loads((FOLDER / name / "other_names.json").read_text()), open_tensors(FOLDER / name, "test")
    tensors = [ToWrite(other, stored[key].dtype, stored[key].shape, stored[key].map) for other, key in names.items()]
    write_tensors(target, tensors)
    return target


def in_dtype(name: str, target: Path, dtype: Any) -> Path:
    """A copy of a folder with numbers of another type."""
    target.mkdir(parents=True)
    shutil.copy(FOLDER / name / "config.json", target)
    stored = open_tensors(FOLDER / name, "test")
    write_tensors(
        target,
        [ToWrite(k, np.dtype(dtype), s.shape, functools.partial(_cast, s, dtype)) for k, s in stored.items()],
    )
    return target


def _cast(stored: Any, dtype: Any) -> np.ndarray:
    return stored.map().astype(dtype)


def export(loaded: Loaded, target: Path) -> Path:
    """The folder that an export of the loaded parameters is, with what was carried aside."""
    described, aside = loaded.folder.described, loaded.folder.aside
    config, written = describe_export(loaded.folder.family, loaded.model, described.labels, aside)
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    tensors = []
    for tensor in written.tensors:
        numbers = tensor.layout.to_theirs([np.asarray(loaded.params[name]) for name in tensor.ours])
        tensors.append(ToWrite(tensor.theirs, numbers.dtype, numbers.shape, functools.partial(np.asarray, numbers)))
    stored = [loaded.folder.tensors[key] for key in aside]
    tensors += [ToWrite(key, s.dtype, s.shape, s.map) for key, s in zip(aside, stored, strict=True)]
    write_tensors(target, tensors)
    return target
