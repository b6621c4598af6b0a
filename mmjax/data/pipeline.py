"""Source + processor -> batches of NumPy arrays, by tf.data: a pure function of (seed, step).

    Dataset.range(start, stop) -> rows of the step -> records, tokens (one Python call a batch) -> pictures (TF ops)

Nothing of tf.data is checkpointed: to resume is to start at another step. TensorFlow is imported here (and in the ops
of `images.py`) when batches are made, never at import.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.data.images import centre_box, image_tf, random_box, readable, size_of, tensorflow
from mmjax.data.order import row_keys, rows_at
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.data.sources import Source


class Pipeline:
    """The batches of one source for this process. Training never ends; evaluation shows every row once, in order.

    Attributes:
      steps: batches of an evaluation, ceil(rows / batch_size); None in training.
      captions, questions: K of the batch: the processor's in training, the most that any row has in evaluation.
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
    ):
        """Args:
        source: what to read.
        features: what to make, of `processor.FEATURES`; masks, validity and keys come along.
        batch_size: of the global batch, over all processes.
        rows: positions in the global batch that this process wants; None for all.
        threads: of reading and decoding; 0 does all in the calling thread, without reading ahead.
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
        self._boxes = processor.image.resize == "crop" or (train and processor.augment.crops)

    def rows_at(self, step: int) -> np.ndarray:
        """[rows wanted] int64: source rows of this process's part of batch `step`."""
        return self._rows(step)[0]

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> rows, epochs, valid; each [rows wanted]."""
        if self.train:
            rows, epochs = rows_at(step, self.batch_size, len(self.source), self.seed)
            return rows[self.rows], epochs[self.rows], np.ones(len(self.rows), bool)
        index = step * self.batch_size + self.rows
        valid = index < len(self.source)
        return np.where(valid, index, 0), np.zeros(len(index), np.int64), valid

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
        example = self._host_batch(start, pool)  # for its shapes and types
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
            kinds = [tf.string if example[name].dtype == object else example[name].dtype for name in names]
            arrays = tf.numpy_function(read, [step], kinds, stateful=False)
            return {n: tf.ensure_shape(a, example[n].shape) for n, a in zip(names, arrays, strict=True)}

        parallel = self.threads or None
        data = tf.data.Dataset.range(start, stop).map(host, num_parallel_calls=parallel)
        if "image" in self.features:
            data = data.map(self._pictures, num_parallel_calls=parallel)
        options = tf.data.Options()
        options.deterministic = True
        # A pool of our own, so that input leaves XLA its cores; an op within it takes one thread.
        options.threading.private_threadpool_size = max(self.threads, 1)
        options.threading.max_intra_op_parallelism = 1
        return data.with_options(options).prefetch(2 if self.threads else 0)

    def _host_batch(self, step: int, pool: ThreadPoolExecutor | None) -> dict[str, np.ndarray]:
        """Everything of a batch that Python makes; the pictures still encoded, as [B] bytes objects in `image`."""
        rows, epochs, valid = self._rows(step)
        read = self._record if "image" in self.features else self.source.annotations
        records = list(pool.map(read, map(int, rows)) if pool else map(read, map(int, rows)))
        keys = row_keys(self.seed, epochs, rows)
        counts = {"captions": self.captions, "questions": self.questions}
        batch = self.processor.arrays(records, keys, self.features, train=self.train, **counts)
        batch |= {"row": rows.astype(np.int32), "valid": valid}
        if "image" in self.features:
            batch["image"] = np.array([*(r["image"] for r in records), None], object)[:-1]
            settings, augment = self.processor.image, self.processor.augment
            if self.train:
                batch["draw"] = self.processor.picture_draws(records, keys)
            if self.train and augment.crops:
                boxes = [random_box(*r["size"], d, augment) for r, d in zip(records, batch["draw"], strict=True)]
                batch["box"] = np.array(boxes, np.int32).reshape(-1, 4)
            elif settings.resize == "crop":
                batch["box"] = np.array([centre_box(*r["size"], settings) for r in records], np.int32).reshape(-1, 4)
        return batch

    def _record(self, row: int) -> dict[str, Any]:
        record = self.source[row]
        if not record.get("image"):
            raise ConfigError(
                f"{self.source.name}, row {row} ({record.get('id')}): has no picture, but a task wants one."
            )
        try:
            data = readable(record["image"])
            return {**record, "image": data, **({"size": size_of(data)} if self._boxes else {})}
        except Exception as error:
            raise self._broken(row, record, error) from error

    def _pictures(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Decodes, cuts and resizes the B pictures: TF ops only."""
        tf = tensorflow()

        settings, augment = self.processor.image, self.processor.augment if self.train else None
        parts = {name: batch.pop(name) for name in ("image", "box", "draw") if name in batch}
        signature = tf.TensorSpec((settings.size, settings.size, 3), tf.uint8)
        batch["image"] = tf.map_fn(
            lambda p: image_tf(p["image"], p.get("box"), p.get("draw"), settings, augment),
            parts,
            fn_output_signature=signature,
        )
        return batch

    def _explain(self, step: int, error: Exception) -> Exception:
        """The error behind TensorFlow's: what Python raised, or the first picture of the step that does not decode."""
        cause = self._errors.get(step, error)
        if step in self._errors or isinstance(error, ConfigError):
            return cause if isinstance(cause, ConfigError) else self._unread(step, cause)
        from mmjax.data.images import decode_tf

        for row in self.rows_at(step) if "image" in self.features else ():
            record = self.source[int(row)]
            try:
                decode_tf(readable(record["image"]))
            except Exception as cause:
                return self._broken(int(row), record, cause)
        return self._unread(step, error)

    def _broken(self, row: int, record: dict[str, Any], cause: Exception) -> ConfigError:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        return ConfigError(
            f"{self.source.name}, row {row} ({record.get('id')}): {len(record['image'])} bytes that are no readable "
            f"picture ({reason}). Expected a JPEG, a PNG or another format that PIL reads. Repair or leave out the row."
        )

    def _unread(self, step: int, cause: Exception) -> ConfigError:
        rows = self.rows_at(step)[:8].tolist()
        return ConfigError(f"{self.source.name}: step {step}, rows {rows}...: {type(cause).__name__}: {cause}")


def _most(source: Source, features: frozenset[str]) -> tuple[int, int]:
    """The most captions and the most questions that a row has, at least 1 each; one scan of the annotations."""
    captions = questions = 1
    if features & {"text", "question", "answer", "answer_text"}:
        for i in range(len(source)):
            record = source.annotations(i)
            captions = max(captions, len(record.get("texts", ())))
            questions = max(questions, len(record.get("qa", ())))
    return captions, questions
