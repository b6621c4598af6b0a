"""Packed sets: written from a pipeline's evaluation batches, and read as training or evaluation batches.

A row is packed as evaluation sees it: the picture at its final size, and all captions, questions and answers as tokens.
Training draws from these by the same numbers as from the records, so that a packed run has the batches of the unpacked
one: flips, brightness and contrast are changes of the final pixels; random boxes are not, and are refused. Pictures are
those of `image.train_path="exact"`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import differences, plain
from mmjax.data import answers as answering
from mmjax.data.choices import ANSWER, QUESTION, TEXT, pick, text_key
from mmjax.data.image_files import PictureError
from mmjax.data.images import changed
from mmjax.data.mixture import Mixture
from mmjax.data.order import uniforms
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor, ProcessorConfig, picture_of
from mmjax.data.sources import Record, Source, Subset
from mmjax.data.sources.packed import ANNOTATIONS, BAD, OF_QUESTION, OF_TEXT, PackedSource, write_meta
from mmjax.data.splits import contents
from mmjax.errors import ConfigError
from mmjax.metrics import progress

SHARD = 256 << 20  # bytes of pictures in a shard
BATCH = 64
# What is done or drawn anew in each epoch, from what is packed; all else of a processor is fixed by packing.
_FREE = ("augment.", "captions", "caption_choice", "questions")


def pack(
    source: Source,
    processor: Processor,
    config: ProcessorConfig,
    features: frozenset[str],
    folder: Path,
    *,
    threads: int = 2,
    max_bad_fraction: float = 0.0,
) -> int:
    """Writes a source as the processor sees it into `folder` -> bytes written.

    Args:
      config: what the processor was fitted by.
      features: what the tasks want, of `processor.FEATURES`.
      threads, max_bad_fraction: as of `Pipeline`. Rows whose pictures cannot be read stay in, known as bad.

    Raises:
      ConfigError: the folder is not empty, or the pictures are to be cut at random.
    """
    refuse_crops(processor)
    if packs_of(source):
        raise ConfigError(f"{source.name}: is packed already. Pack from the data that it was made of.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--out: '{folder}' is not empty. Expected a new folder; remove it or name another.")
    folder.mkdir(parents=True, exist_ok=True)
    keys = contents(source)
    options = {"threads": threads, "max_bad_fraction": max_bad_fraction, "bad_file": folder / BAD}
    pipeline = Pipeline(source, processor, features, batch_size=min(BATCH, len(source)), train=False, **options)
    rows = max(1, SHARD // (3 * processor.image.pixels) // pipeline.batch_size) * pipeline.batch_size
    batches = pipeline.batches()
    steps = iter(progress(range(pipeline.steps), f"pack {source.name}"))
    size = 0
    for shard in itertools.count():
        taken = [next(batches) for _ in itertools.islice(steps, rows // pipeline.batch_size)]
        if not taken:
            break
        first = shard * rows
        numbers = range(first, min(first + rows, len(source)))
        records = [_keyed(source.annotations(i), int(keys[i])) for i in numbers]
        size += _write(folder / f"{shard:05d}", _arrays(taken, records, processor, features))
    write_meta(
        folder,
        {
            "name": source.name,
            "source": source.fingerprint,
            "rows": len(source),
            "shard_rows": rows,
            "features": sorted(features),
            "left_aside": dict(source.left_aside),
            "most_captions": pipeline.captions,
            "config": plain(config),
            "sha256": processor.sha256,
            "processor": processor.to_json(),
        },
    )
    return size


def _keyed(record: Record, content: int) -> Record:
    return record if record.get("key") else {**record, "key": f"picture {content:016x}"}


def _arrays(
    batches: Sequence[Mapping[str, np.ndarray]],
    records: Sequence[Record],
    processor: Processor,
    features: frozenset[str],
) -> dict[str, np.ndarray]:
    """The arrays of a shard. The texts of all rows lie one after the other, without the batches' padding."""
    count = len(records)
    whole = {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}
    read = whole.pop("valid")  # in place of a row that is not stands another, of which nothing may stay
    made: dict[str, np.ndarray] = {}
    for names, valid in ((OF_TEXT, "text_valid"), (OF_QUESTION, "question_valid")):
        if valid in whole:
            is_real = whole.pop(valid) & read[:, None]
            made[valid.replace("valid", "start")] = _starts(is_real.sum(1))
            made |= {name: whole.pop(name)[is_real] for name in names if name in whole}
    if "answer_text" in features:
        del whole["answer_text"], whole["answer_mask"]
        known = [record for record, good in zip(records, read, strict=True) if good]
        asked = [question["answers"] for record in known for question in record.get("qa", ())]
        said = [[answering.most_frequent(answers), *map(answering.normalise, answers)] for answers in asked]
        made["answer_start"] = _starts([len(answers) for answers in said])
        every = [answer for answers in said for answer in answers]
        made["answer_text"], made["answer_mask"] = processor.tokenizer.encode(every, processor.answer_length)
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in records]
    made[ANNOTATIONS] = np.frombuffer(b"".join(lines), np.uint8)
    made[f"{ANNOTATIONS}_start"] = _starts([len(line) for line in lines])
    del whole["row"]
    return made | whole


def _starts(counts: Iterable[int]) -> np.ndarray:
    return np.r_[0, np.cumsum(np.asarray(counts, np.int64))].astype(np.int64)


def _write(folder: Path, made: Mapping[str, np.ndarray]) -> int:
    folder.mkdir()
    for name, array in made.items():
        np.save(folder / f"{name}.npy", array)
    return sum(array.nbytes for array in made.values())


def refuse_crops(processor: Processor | ProcessorConfig) -> None:
    """Raises ConfigError where training pictures are cut at random."""
    if processor.augment.crops:
        raise ConfigError(
            f"config.processor.augment.crop_area: found {processor.augment.crop_area}, but packed pictures have their "
            "final size and cannot be cut at random. Set it to (1, 1), or train without packing."
        )


def packs_of(source: Source) -> list[PackedSource]:
    """The packed sources that a source is made of; [] where it is made of others."""
    if isinstance(source, PackedSource):
        return [source]
    if isinstance(source, Subset):
        return packs_of(source.source)
    return [p for s in source.sources.values() for p in packs_of(s)] if isinstance(source, Mixture) else []


def packed_processor(sources: Sequence[Source], config: ProcessorConfig, where: str) -> Processor | None:
    """The processor that packed training sources were made by, with what `config` draws anew; None without such.

    Raises ConfigError where only some are packed, by different processors, or by another config than `config`.
    """
    packs = [pack for source in sources for pack in packs_of(source)]
    if not packs:
        return None
    parts = [s for source in sources for s in (source.sources.values() if isinstance(source, Mixture) else [source])]
    if others := [source.name for source in parts if not packs_of(source)]:
        raise ConfigError(
            f"config.data.train: '{others[0]}' is not packed, but '{packs[0].name}' is. Pack all or none."
        )
    first = packs[0]
    for other in packs[1:]:
        if other.meta["sha256"] != first.meta["sha256"]:
            raise ConfigError(
                f"config.data.train: '{first.name}' and '{other.name}' were packed by different processors. Pack them "
                "by one command."
            )
    refuse_crops(config)
    for name, (old, new) in differences(first.meta["config"], plain(config)).items():
        if not name.startswith(_FREE):
            raise ConfigError(
                f"{where}.{name}: found {new!r}, but '{first.name}' was packed with {old!r}. Set it so, or pack anew."
            )
    captions = config.captions or max(pack.meta["most_captions"] for pack in packs)
    drawn = {"captions": captions, "caption_choice": config.caption_choice, "questions": config.questions}
    return dataclasses.replace(Processor.from_json(first.meta["processor"]), augment=config.augment, **drawn)


def make_pipeline(source: Source, processor: Processor, features: frozenset[str], **options: Any) -> Pipeline:
    """A `Pipeline` for the source: the packed one for packed rows. Options as of `Pipeline`."""
    kind = PackedPipeline if packs_of(source) else Pipeline
    return kind(source, processor, features, **options)


class PackedPipeline(Pipeline):
    """A Pipeline of packed rows: it reads no picture file, makes no tokens, and imports no TensorFlow."""

    def __init__(self, source: Source, processor: Processor, features: frozenset[str], **options: Any):
        super().__init__(source, PackedProcessor.of(processor), features, **options)
        if self.train:
            refuse_crops(processor)
        for pack in packs_of(source):
            if missing := sorted(self.features - set(pack.meta["features"])):
                raise ConfigError(
                    f"config.tasks: a task wants '{missing[0]}', but '{pack.name}' was packed with "
                    f"{', '.join(pack.meta['features'])}. Pack anew with these tasks."
                )
            changes = processor.differences(Processor.from_json(pack.meta["processor"]))
            if changes := [name for name in changes if not name.startswith(_FREE)]:
                raise ConfigError(
                    f"{pack.name}: packed by another processor (it differs in {', '.join(changes)}). Pack it with the "
                    "config of this run, and with its training set."
                )

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """As of `Pipeline`."""
        last = self.steps if stop is None else stop
        steps = iter(range(start, last) if last is not None else itertools.count(start))
        pool = ThreadPoolExecutor(self.threads) if self.threads else None
        begun = deque((step, self._begin(step, pool)) for step in itertools.islice(steps, 1 + self.threads))
        try:
            while begun:
                step, made = begun.popleft()
                try:
                    batch = made()
                except Exception as error:
                    raise self._explain(step, error) from error
                begun.extend((step, self._begin(step, pool)) for step in itertools.islice(steps, 1))
                yield batch
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, step: int, pool: ThreadPoolExecutor | None) -> Callable[[], dict[str, np.ndarray]]:
        """What gives the batch: made in the pool meanwhile, or when it is called."""
        return pool.submit(self._host_batch, step, None).result if pool else partial(self._host_batch, step, None)

    def _record(self, row: int) -> Record:
        return self.source[row]

    def _picture(self, record: Record, draw: np.ndarray) -> np.ndarray | None:
        packed = record["packed"]
        if "bad" in packed:
            raise PictureError(*packed["bad"])
        image = picture_of(packed)
        if not self.train or not image.size:
            return image
        return changed(image, draw, self.processor.augment_of(record))


class PackedProcessor(Processor):
    """A Processor whose `arrays` takes what was packed of the records, drawn as its base draws from their texts."""

    @staticmethod
    def of(processor: Processor) -> PackedProcessor:
        return PackedProcessor(**{f.name: getattr(processor, f.name) for f in dataclasses.fields(processor)})

    def arrays(
        self,
        records: Sequence[Mapping],
        keys: np.ndarray,
        features: frozenset[str],
        *,
        train: bool,
        captions: int,
        questions: int,
    ) -> dict[str, np.ndarray]:
        """As of `Processor`, of records of a `PackedSource`."""
        packed = [record["packed"] for record in records]
        whole = {"image": ("image_key",), "label": ("label",), "labels": ("labels", "labels_valid")}
        whole["value"] = ("value", "value_valid")
        whole["chat"] = ("chat", "chat_mask", "chat_supervised", *(("image_valid",) if "image" in features else ()))
        names = [name for feature, made in whole.items() if feature in features for name in made]
        batch = {name: np.stack([row[name] for row in packed]) for name in names}
        if "text" in features:
            draw = train and self.caption_choice == "random"
            options = [range(len(row["text"])) for row in packed]
            taken, batch["text_valid"] = pick(options, keys, TEXT, captions, draw, -1)
            ids, mask = self.encode([""], self.length)
            nothing = {"text": ids[0], "text_mask": mask[0], "text_key": np.int32(text_key(""))}
            batch |= {name: _gather(packed, name, taken, empty) for name, empty in nothing.items()}
        if features & {"question", "answer", "answer_text"}:
            options = [range(len(record.get("qa", ()))) for record in records]
            taken, batch["question_valid"] = pick(options, keys, QUESTION, questions, train, -1)
            ids, mask = self.encode([""], self.question_length)
            nothing = {"question": ids[0], "question_mask": mask[0], "answer": np.int32(self.answer_class(()))}
            of = {"question": "question", "question_mask": "question", "answer": "answer"}
            batch |= {n: _gather(packed, n, taken, empty) for n, empty in nothing.items() if of[n] in features}
            if "answer_text" in features:
                chance = uniforms(keys, ANSWER, questions) if train else None
                said = [
                    [
                        _answer(row["answer_start"], j, None if chance is None else chance[i, k])
                        for k, j in enumerate(js)
                    ]
                    for i, (row, js) in enumerate(zip(packed, taken, strict=True))
                ]
                ids, mask = self.tokenizer.encode([""], self.answer_length)
                nothing = {"answer_text": ids[0], "answer_mask": mask[0]}
                batch |= {name: _gather(packed, name, said, empty) for name, empty in nothing.items()}
        return batch


def _gather(packed: Sequence[Mapping], name: str, taken: Sequence[Sequence[int]], empty: np.ndarray) -> np.ndarray:
    """[B, K, ...]: of each row the entries `taken`, `empty` for -1."""
    rows = zip(packed, taken, strict=True)
    return np.stack([np.stack([row[name][j] if j >= 0 else empty for j in js]) for row, js in rows])


def _answer(starts: np.ndarray, question: int, chance: float | None) -> int:
    """Where the answer to a question stands: the first is the most frequent, the others are drawn from."""
    if question < 0:
        return -1
    first, count = int(starts[question]), int(starts[question + 1] - starts[question]) - 1
    return first if chance is None or not count else first + 1 + int(chance * count)
