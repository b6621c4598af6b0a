"""What of a Hugging Face folder goes along with a run beside its parameters, so that an export gives it back."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmjax.pretrained.folder import Folder
from mmjax.pretrained.processing import PICTURES, VOCABULARIES
from mmjax.pretrained.sentences import FILES as SENTENCES
from mmjax.pretrained.tensor_files import ToWrite, write_tensors

ORIGIN = "origin"  # its folder in a workdir
_ALONG = ("config.json", "generation_config.json", "chat_template*", *PICTURES, "tokenizer_config.json",
          "special_tokens_map.json", "added_tokens.json", *VOCABULARIES, *SENTENCES)  # fmt: skip


def keep_origin(folder: Folder, workdir: Path) -> None:
    """Copies what an export gives back as it came: configs, vocabulary, chat template, and the tensors set aside."""
    target = workdir / ORIGIN
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted({file for pattern in _ALONG for file in folder.path.glob(pattern)}):
        if file.is_file():
            copy = target / file.relative_to(folder.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    aside = {key: folder.tensors[key] for key in folder.aside}
    if aside:
        write_tensors(target, [ToWrite(k, t.dtype, t.shape, t.map) for k, t in aside.items()])
