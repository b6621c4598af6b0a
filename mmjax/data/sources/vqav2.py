"""VQAv2 (Goyal et al., 2017): questions in one json file, the ten people's answers to each in another beside it.

    {"data_subtype", "questions": [{"question_id", "image_id", "question"}]}
    {"annotations": [{"question_id", "answers": [{"answer"} x 10]}]}

The answers are in the file of the same name with `annotations` for `questions`, in the one of the official name
(v2_OpenEnded_mscoco_train2014_questions.json: v2_mscoco_train2014_annotations.json), or else in the first file beside
that has an answer to every question. Only a set that calls itself a test set, by `data_subtype` or by its file's name,
may lack answers: its questions have `answers=[]`, so that a model answers them, and no figure counts them.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import entries, head_of, outline
from mmjax.data.sources.pictures import FOLDERS, PROBED, Line, PictureSource, looks_like_picture, picture_source
from mmjax.errors import ConfigError

NAME = "vqav2"
EXPECTED = "one object with the list questions (question_id, image_id, question), or annotations (question_id, answers)"


def claims(path: Path, head: bytes) -> bool:
    """One object with questions by image id, or with annotations by question id; a folder with such questions."""
    return bool(_question_files(path)) if path.is_dir() else _asks(head) or _answers(head)


def _asks(head: bytes) -> bool:
    return {"question", "image_id"} <= set(outline(head).get("questions", ()))


def _answers(head: bytes) -> bool:
    return "question_id" in outline(head).get("annotations", ())


def _question_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*questions*.json")) if _asks(head_of(file))]


def open_source(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens the questions' file, or a folder with one. ConfigError names the file and the question, counted from 1."""
    file = _only(path, where) if path.is_dir() else path
    if not _asks(head_of(file)) and _answers(head_of(file)):
        raise ConfigError(
            f"{where}.path: '{file}' holds the answers. Expected the file with the questions, beside which it is found."
        )
    subtype, lines, ids = _questions(file)
    left_aside: Counter[str] = Counter()
    annotations = _answer_all(file, lines, ids, left_aside)
    if annotations is None and "test" not in subtype:
        raise ConfigError(
            f"{file.name}: no file with its answers beside it. Expected "
            f"'{_names(file)[-1]}', or '{_names(file)[0]}'; only a set that is called test may have none."
        )
    root, name = _habit(file, [line.image for line in lines], subtype.replace("-dev", ""), config.root)
    source = picture_source(
        file,
        [replace(line, image=name(line.image)) for line in lines],
        root,
        config.group,
        where,
        tolerate=config.max_bad_fraction,
        left_aside=left_aside,
    )
    if annotations:
        source.fingerprint = hashlib.sha256(source.fingerprint.encode() + annotations.read_bytes()).hexdigest()
    return source


def _only(folder: Path, where: str) -> Path:
    files = _question_files(folder)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{where}.path: '{folder}' has several sets of questions. Set it to one of them: {names}.")
    return files[0]


def _questions(file: Path) -> tuple[str, list[Line], list[Any]]:
    """-> (split, lines without answers whose image is the image id as text, question ids)."""
    subtype, lines, ids = "", [], []
    for key, item in entries(file, EXPECTED):
        if key == "data_subtype":
            subtype = str(item)
        elif key == "questions":
            at = f"{file.name}, question {len(lines) + 1}"
            question, image = (_get(item, name, at) for name in ("question", "image_id"))
            if not isinstance(question, str) or not question.strip():
                raise ConfigError(f"{at}: found {question!r:.60}, expected text.")
            lines.append(Line(image=str(image), row=len(lines) + 1, question=question, answers=[]))
            ids.append(_get(item, "question_id", at))
    found = re.search(r"(train|val|test)(-dev)?\d{4}|test", file.stem)
    return subtype or (found[0] if found else ""), lines, ids


def _names(file: Path) -> list[str]:
    """What the file with the answers may be called."""
    name = file.name.replace("questions", "annotations")
    return [name, re.sub("(OpenEnded|MultipleChoice)_", "", name)]


def _answer_all(file: Path, lines: Sequence[Line], ids: Sequence[Any], left_aside: Counter[str]) -> Path | None:
    """Puts the answers into the lines -> the file that they are from, None where there is none."""
    named = next((path for name in _names(file) if name != file.name and (path := file.parent / name).is_file()), None)
    beside = [path for path in sorted(file.parent.glob("*annotations*.json")) if _answers(head_of(path))]
    for path in [named] if named else beside:
        answers = _read_answers(path)
        absent = next((i for i, question in enumerate(ids) if question not in answers), None)
        if absent is None:
            for line, question in zip(lines, ids, strict=True):
                line.answers = answers[question]
            if more := len(answers.keys() - set(ids)):
                left_aside["answers to questions that are not asked"] = more
            return path
        if named:
            raise ConfigError(
                f"{path.name}: no answer to question {absent + 1} of {file.name} (question_id {ids[absent]!r}). "
                "Expected one to every question; remove the question."
            )
    return None


def _read_answers(file: Path) -> dict[Any, list[str]]:
    """{question id: its answers}."""
    found: dict[Any, list[str]] = {}
    for key, item in entries(file, EXPECTED):
        if key != "annotations":
            continue
        at = f"{file.name}, annotation {len(found) + 1}"
        given = _get(item, "answers", at)
        answers = [one.get("answer") if isinstance(one, dict) else one for one in given]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ConfigError(f"{at}: found {given!r:.80}, expected answers, as text or as {{'answer': text}}.")
        # Millions of them, of few kinds.
        found[_get(item, "question_id", at)] = [sys.intern(answer) for answer in answers]
    return found


def _get(item: Any, name: str, at: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise ConfigError(f"{at}: found {item!r:.80}, expected an object with '{name}'.")
    return item[name]


def _habit(file: Path, images: Sequence[str], pictures: str, root: str) -> tuple[str, Callable[[str], str]]:
    """How COCO's pictures are called here -> (folder, "" if none has them; image id as text -> file name).

    pictures: the set that they are of, such as train2014: a folder, a part of their names, or neither.
    """
    if all(looks_like_picture(image) for image in images[:PROBED]):
        return root, str
    habits = ["{:0>12}.jpg", "{}.jpg", "{}.png"]
    if pictures:
        habits.insert(0, f"COCO_{pictures}_" + "{:0>12}.jpg")
    bases = [Path(root)] if root else [file.parent / folder for folder in FOLDERS]
    folders = [folder for base in bases for folder in (base, base / pictures)]
    first = list(dict.fromkeys(images))[:PROBED]

    def hits(choice: tuple[Path, str]) -> int:
        return sum((choice[0] / choice[1].format(image)).is_file() for image in first)

    folder, habit = best = max(((folder, habit) for folder in folders for habit in habits), key=hits)
    return str(folder) if hits(best) else root, habit.format
