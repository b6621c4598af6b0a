"""Folders with vocabulary and picture settings, made once."""

import pytest

from tests.pretrained.with_processor import complete

ENDS = {"clip": 60}  # an old CLIP: the end of a text is its highest id
NO_BOS = {"siglip"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """name of a fixture -> a folder of it that nobody changes."""
    base, made = tmp_path_factory.mktemp("folders"), {}

    def of(name):
        if name not in made:
            made[name] = complete(name, base / name, end=ENDS.get(name, 59), bos=name not in NO_BOS)
        return made[name]

    return of
