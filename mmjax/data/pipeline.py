"""Source + processor -> batches of NumPy arrays, by tf.data: a pure function of (seed, step).

    Dataset.range(start, stop) -> rows of the step -> records, tokens, pictures (a pool of threads)

Nothing of tf.data is checkpointed: to resume is to start at another step. Pictures are decoded and resized in C without
Python's lock. TensorFlow is imported when batches are made, never at import.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.data.bad_records import BadRecords
from mmjax.data.image_files import PictureError, examine, tensorflow
from mmjax.data.images import evaluation_image, training_image
from mmjax.data.mixture import Mixture
from mmjax.data.order import row_keys, rows_at, uniforms
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.layouts import Layout
    from mmjax.data.processor import Processor
    from mmjax.data.sources import Record, Source

_STAND_IN = 5  # purpose of the random numbers that choose another row for a bad one
_STAND_INS = 64  # rows tried


class Pipeline:
    """The batches of one source for this process. Training never ends; evaluation shows every row once, in order.

    Attributes:
      steps: batches of an evaluation, ceil(rows / batch_size); None in training.
      shapes: how many shapes of batches there are at most.
      rows_a_step: rows of the global batch, the mean of all steps where rows are packed.
      captions, questions: K of the batch: the processor's in training, the most that any row has in evaluation.
      bad: the rows met so far that cannot be read. In training another row of their source stands in, chosen by the
        seed, the epoch and the row alone, so no other row changes; in evaluation they are not valid.
      fingerprint: identifies the data and how it is read: equal ones give equal batches for equal (seed, step).
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        features: frozenset[str],
        *,
        batch_size: int,
        seed: int = 0,
        train: bool,
        rows: np.ndarray | None = None,
        threads: int = 2,
        max_bad_fraction: float = 0.0,
        bad_file: Path | None = None,
        layout: Layout | None = None,
    ):
        """Args:
        source: what to read.
        features: what to make, of `processor.FEATURES`; masks, validity and keys come along.
        batch_size: of the global batch, over all processes; of packed rows the number of sequences.
        rows: positions in the global batch that this process wants; None for all.
        threads: of reading and decoding; 0 does all in the calling thread, without reading ahead.
        max_bad_fraction: share of the rows that may be unreadable; more end it with a `ConfigError`.
        bad_file: where these are listed.
        layout: how rows lie in a training batch, None for one by one. A row that cannot be read is then not valid.
        """
        if not len(source):
            raise ConfigError(f"{source.name}: no rows.")
        if batch_size < 1:
            raise ConfigError(f"batch_size: found {batch_size}, expected 1 or more.")
        self.source, self.processor, self.features = source, processor, frozenset(features)
        self.batch_size, self.seed, self.train, self.threads = batch_size, seed, train, threads
        self.rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < batch_size:
            raise ConfigError(
                f"{source.name}: positions up to {self.rows.max()} of a batch of {batch_size} are wanted."
            )
        self.steps = None if train else -(-len(source) // batch_size)
        self.captions, self.questions = processor.captions, processor.questions
        if not train:
            self.captions, self.questions = _most(source, self.features)
        self.fingerprint = f"{source.fingerprint}/{processor.sha256}"
        self._errors: dict[int, Exception] = {}
        self._example: dict[str, np.ndarray] | None = None
        self.layout = layout
        self.shapes = layout.shapes if layout else 1
        self.rows_a_step = batch_size * (layout.rows_a_place if layout else 1.0)
        self.bad = BadRecords(source.name, len(source), max_bad_fraction, bad_file)

    def rows_at(self, step: int) -> np.ndarray:
        """[rows wanted] int64: source rows of this process's part of batch `step`, bad ones included; of all its
        sequences, one after the other, where rows are packed.
        """
        return self._rows(step)[0]

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> rows, epochs, valid; each [rows wanted]."""
        if self.train:
            if self.layout:
                rows, epochs = (of[self.rows] for of in self.layout.rows_at(step, self.batch_size, self.seed))
                real = rows >= 0
                return rows[real], epochs[real], np.ones(real.sum(), bool)
            if isinstance(self.source, Mixture):
                rows, epochs = self.source.rows_at(step, self.batch_size, self.seed)
            else:
                rows, epochs = rows_at(step, self.batch_size, len(self.source), self.seed)
            return rows[self.rows], epochs[self.rows], np.ones(len(self.rows), bool)
        index = step * self.batch_size + self.rows
        valid = index < len(self.source)
        return np.where(valid, index, 0), np.zeros(len(index), np.int64), valid

    def shares(self, step: int) -> dict[str, float]:
        """{source: its share of the rows of the first `step` batches}, of a mixture; else {}."""
        return self.source.shares(step * self.batch_size, self.seed) if isinstance(self.source, Mixture) else {}

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps start, start + 1, ... below `stop` (None: without end; in evaluation all).

        A row that cannot be read ends it with a `ConfigError` that names the source and the row.
        """
        stop = self.steps if stop is None else stop
        stop = np.iinfo(np.int64).max if stop is None else stop
        self._errors.clear()
        pool = ThreadPoolExecutor(self.threads) if self.threads else None
        iterator, step = None, start
        try:
            while step < stop:
                try:
                    iterator = iterator or self._dataset(start, stop, pool).as_numpy_iterator()
                    batch = next(iterator)
                except Exception as error:  # TensorFlow keeps only the text of an exception; the order tells the step
                    raise self._explain(step, error) from error
                yield batch
                step += 1
        finally:
            del iterator  # before its pool
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)

    def _dataset(self, start: int, stop: int, pool: ThreadPoolExecutor | None) -> Any:
        tf = tensorflow()
        example = self._shapes(start, pool)
        names = sorted(example)

        def read(step: np.ndarray) -> list[np.ndarray]:
            step = int(step)
            try:
                batch = self._host_batch(step, pool)
            except Exception as error:
                self._errors[step] = error
                raise
            return [batch[name] for name in names]

        def host(step: Any) -> dict[str, Any]:
            arrays = tf.numpy_function(read, [step], [example[name].dtype for name in names], stateful=False)
            shapes = {n: example[n].shape if self.shapes == 1 else [None] * example[n].ndim for n in names}
            return {n: tf.ensure_shape(a, shapes[n]) for n, a in zip(names, arrays, strict=True)}

        data = tf.data.Dataset.range(start, stop).map(host, num_parallel_calls=self.threads or None)
        options = tf.data.Options()
        options.deterministic = True
        # A pool of our own, so that input leaves XLA its cores; an op within it takes one thread.
        options.threading.private_threadpool_size = max(self.threads, 1)
        options.threading.max_intra_op_parallelism = 1
        return data.with_options(options).prefetch(2 if self.threads else 0)

    def _shapes(self, start: int, pool: ThreadPoolExecutor | None) -> dict[str, np.ndarray]:
        """Empty arrays with the shapes and types of a batch, from making one, once."""
        if self._example is None:
            self._example = {name: np.empty_like(array) for name, array in self._host_batch(start, pool).items()}
        return self._example

    def _host_batch(self, step: int, pool: ThreadPoolExecutor | None) -> dict[str, np.ndarray]:
        """All arrays of a batch."""
        wanted, epochs, valid = self._rows(step)
        draws = self.processor.picture_draws(row_keys(self.seed, epochs, wanted))
        parts = max(1, min(len(wanted) // 4, 8 * self.threads))  # a task a row would pass the lock around more often
        of_parts = [np.array_split(of, parts) for of in (wanted, epochs, draws)]
        over = pool.map if pool else map
        read = [row for part in over(self._read_rows, *of_parts) for row in part]
        rows = np.array([row for row, _, _ in read], np.int64).reshape(-1)
        records = [record for _, record, _ in read]
        counts = {"captions": self.captions, "questions": self.questions}
        keys = row_keys(self.seed, epochs, rows)
        batch = self.processor.arrays(records, keys, self.features, train=self.train, **counts)
        if not self.train or self.layout:
            valid &= rows == wanted
        batch |= {"row": rows.astype(np.int32), "valid": valid}
        if "image" in self.features:
            batch |= self.processor.pictures([pixels for *_, pixels in read])
        if self.layout:
            return self.layout.lay(batch, self.layout.rows_at(step, self.batch_size, self.seed)[0], self.rows)
        return batch

    def _read_rows(self, wanted: np.ndarray, epochs: np.ndarray, draws: np.ndarray) -> list[tuple]:
        return list(map(self._read, wanted.tolist(), epochs.tolist(), draws))

    def _read(self, wanted: int, epoch: int, draw: np.ndarray) -> tuple[int, Record, np.ndarray | None]:
        """A row, or the one that stands in for it -> (row, record, its picture as the model sees it)."""
        for row in self._candidates(wanted, epoch):
            if row in self.bad:
                continue
            if row != wanted:
                draw = self.processor.picture_draws(row_keys(self.seed, np.array([epoch]), np.array([row])))[0]
            try:
                record = self._record(row)
                return row, record, self._picture(record, draw) if "image" in self.features else None
            except PictureError as error:
                self._note(row, error.cause, self._broken(row, record, error))
            except FileNotFoundError as error:
                self._note(row, "missing", ConfigError(f"{self.source.name}, row {row}: no file '{error.filename}'."))
            except ConfigError as error:
                self._note(row, "unreadable line", error)
        raise ConfigError(f"{self.source.name}: row {wanted} and {_STAND_INS} others in its place cannot be read.")

    def _candidates(self, wanted: int, epoch: int) -> Iterator[int]:
        yield wanted
        first, count = self.source.span(wanted) if isinstance(self.source, Mixture) else (0, len(self.source))
        key = row_keys(self.seed, np.array([epoch]), np.array([wanted]))
        yield from (first + (uniforms(key, _STAND_IN, _STAND_INS)[0] * count).astype(np.int64)).tolist()

    def _note(self, row: int, cause: str, error: ConfigError) -> None:
        try:
            id = self.source.annotations(row)["id"]
        except ConfigError:
            id = ""
        self.bad.add(row, id, cause, error)

    def _record(self, row: int) -> Record:
        if "image" not in self.features:
            return self.source.annotations(row)
        record = self.source[row]
        if "image" not in record and "messages" not in record:
            raise ConfigError(
                f"{self.source.name}, row {row} ({record.get('id')}): has no picture, but a task wants one."
            )
        if len(record.get("images", ())) > 1:
            raise ConfigError(
                f"{self.source.name}, row {row} ({record.get('id')}): {len(record['images'])} pictures. Expected "
                "at most one; rows with several cannot be trained on yet."
            )
        return record

    def _picture(self, record: Record, draw: np.ndarray) -> np.ndarray | None:
        """[H, W, 3] uint8; None for a conversation without a picture. Raises PictureError."""
        settings = self.processor.image
        if "image" not in record:
            return None
        picture = examine(record["image"], settings.max_pixels)
        if not self.train:
            return evaluation_image(picture, settings)
        return training_image(picture, draw, settings, self.processor.augment_of(record))

    def _explain(self, step: int, error: Exception) -> Exception:
        """The error behind TensorFlow's: what Python raised."""
        cause = self._errors.get(step, error)
        if isinstance(cause, ConfigError):
            return cause
        rows = self.rows_at(step)[:8].tolist()
        return ConfigError(f"{self.source.name}: step {step}, rows {rows}...: {type(cause).__name__}: {cause}")

    def _broken(self, row: int, record: Record, error: PictureError) -> ConfigError:
        return ConfigError(
            f"{self.source.name}, row {row} ({record.get('id')}): no readable picture: {error}. Expected a JPEG, "
            "a PNG or another format that PIL reads. Repair or leave out the row."
        )


def _most(source: Source, features: frozenset[str]) -> tuple[int, int]:
    """The most captions and the most questions that a row has, at least 1 each; one scan of the annotations."""
    captions = questions = 1
    if features & {"text", "question", "answer", "answer_text"}:
        for i in range(len(source)):
            record = source.annotations(i)
            captions = max(captions, len(record.get("texts", ())))
            questions = max(questions, len(record.get("qa", ())))
    return captions, questions
