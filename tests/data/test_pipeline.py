"""The pipeline: a pure function of (seed, step), exact evaluation, and errors that name the row."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mmjax.data.images import Augment, ImageSettings, image_pil
from mmjax.data.order import rows_at
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.errors import ConfigError

ALL = frozenset({"image", "text", "question", "answer", "answer_text", "label"})
AUGMENT = Augment(crop_area=(0.4, 1.0), flip=True, brightness=0.2)


def picture(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((20 + i, 24)).save(buffer, "JPEG" if i % 2 else "PNG")
    return buffer.getvalue()


class Memory:
    """A source in memory; `broken` maps rows to bytes or to an exception that reading them raises."""

    def __init__(self, n, broken=None):
        self.name, self.fingerprint, self.broken = "memory", f"memory-{n}", broken or {}
        self.records = []
        for i in range(n):
            qa = [{"question": f"question {j} of {i}", "answers": ["yes", f"a{j}"]} for j in range(i % 4)]
            texts = [f"caption {j} of {i}" for j in range(1 + i % 3)]
            self.records.append({"id": f"p{i}", "texts": texts, "qa": qa, "label": f"c{i % 2}"})

    def __len__(self):
        return len(self.records)

    def annotations(self, i):
        return self.records[i]

    def __getitem__(self, i):
        data = self.broken.get(i, picture(i))
        if isinstance(data, Exception):
            raise data
        return {**self.records[i], "image": data}


@pytest.fixture(scope="module")
def processor():
    config = ProcessorConfig(image=ImageSettings(size=16), augment=AUGMENT, length=12, captions=2, questions=2)
    return Processor.fit(config, [Memory(11)], ALL, say=lambda line: None)


def pipeline(processor, n=11, batch_size=4, train=True, features=ALL, broken=None, **options):
    return Pipeline(Memory(n, broken), processor, features, batch_size=batch_size, train=train, **options)


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert np.array_equal(first[name], second[name]), name


def test_the_batch_of_a_step_does_not_depend_on_where_reading_began(processor):
    whole = list(pipeline(processor).batches(0, 7))
    assert len(whole) == 7
    for start in (1, 3, 6):
        for batch, expected in zip(pipeline(processor).batches(start, 7), whole[start:], strict=True):
            same(batch, expected)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_change_nothing(processor, threads):
    expected = list(pipeline(processor, threads=2).batches(0, 4))
    for batch, truth in zip(pipeline(processor, threads=threads).batches(0, 4), expected, strict=True):
        same(batch, truth)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_processes_together_see_the_one_global_batch(processor, processes, train):
    whole = list(pipeline(processor, train=train).batches(0, 3))
    parts = [np.arange(4)[p::processes] for p in range(processes)]
    for part in parts:
        mine = list(pipeline(processor, train=train, rows=part).batches(0, 3))
        for batch, truth in zip(mine, whole, strict=True):
            same(batch, {name: array[part] for name, array in truth.items()})


def test_each_row_comes_once_an_epoch_in_the_order_of_rows_at(processor):
    p = pipeline(processor, batch_size=4, seed=3, features=frozenset({"label"}))
    rows = np.concatenate([b["row"] for b in p.batches(0, 11)])  # 4 epochs of 11
    for epoch in range(4):
        assert sorted(rows[epoch * 11 : epoch * 11 + 11]) == list(range(11))
    assert np.array_equal(rows, np.concatenate([rows_at(s, 4, 11, 3)[0] for s in range(11)]))
    assert np.array_equal(p.rows_at(5), rows_at(5, 4, 11, 3)[0])
    assert rows.tolist() != np.concatenate([rows_at(s, 4, 11, 4)[0] for s in range(11)]).tolist()


@pytest.mark.parametrize("n", [1, 8, 11])
def test_evaluation_shows_every_row_once_with_fixed_shapes(processor, n):
    p = pipeline(processor, n=n, train=False)
    batches = list(p.batches())
    assert len(batches) == p.steps == -(-n // 4)
    assert len({tuple((k, v.shape) for k, v in sorted(b.items())) for b in batches}) == 1
    rows, valid = (np.concatenate([b[k] for b in batches]) for k in ("row", "valid"))
    assert rows[valid].tolist() == list(range(n))
    assert (rows[~valid] == 0).all() and len(rows) == p.steps * 4


def test_evaluation_holds_all_texts_and_questions(processor):
    p = pipeline(processor, train=False)
    batch = next(iter(p.batches()))
    assert (p.captions, p.questions) == (3, 3)
    assert batch["text_valid"].sum(1).tolist() == [1, 2, 3, 1]
    assert batch["question_valid"].sum(1).tolist() == [0, 1, 2, 3]
    assert processor.tokenizer.decode(batch["text"][2, 2]) == "caption 2 of 2"


def test_evaluation_pictures_are_those_of_the_pil_path(processor):
    batch = next(iter(pipeline(processor, train=False, batch_size=11).batches()))
    for i in range(11):
        difference = np.abs(batch["image"][i].astype(int) - image_pil(picture(i), processor.image))
        assert (difference > 1).mean() < 0.02  # bicubic on noise; the bound on photos is in test_images


def test_a_rows_augmentation_does_not_depend_on_its_place_in_the_batch(processor):
    small, large = pipeline(processor, batch_size=2), pipeline(processor, batch_size=11)
    by_row = {}
    for batch in small.batches(0, 5):  # 10 of the 11 rows of the first epoch
        by_row |= {int(r): batch["image"][i] for i, r in enumerate(batch["row"])}
    first, second = large.batches(0, 2)
    again = {int(r): second["image"][i] for i, r in enumerate(second["row"])}
    assert len(by_row) == 10
    for i, row in enumerate(first["row"]):
        if int(row) in by_row:
            assert np.array_equal(first["image"][i], by_row[int(row)])
    assert sum(not np.array_equal(by_row[r], again[r]) for r in by_row) >= 9  # and is another one in the next epoch


def test_without_the_image_feature_no_picture_is_read(processor):
    broken = dict.fromkeys(range(11), OSError("must not be read"))
    batch = next(iter(pipeline(processor, features=frozenset({"text"}), broken=broken).batches()))
    assert set(batch) == {"text", "text_mask", "text_valid", "text_key", "row", "valid"}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("row", [1, 9])
@pytest.mark.parametrize("damage", ["noise", "cut", "empty"])
def test_a_bad_picture_is_named_by_source_and_row(processor, threads, row, damage):
    data = picture(row)
    data = {"noise": b"\x00no picture", "cut": data[: len(data) // 2], "empty": b""}[damage]
    p = pipeline(processor, train=False, threads=threads, broken={row: data})
    seen = []
    with pytest.raises(ConfigError, match=rf"memory, row {row} \(p{row}\): "):
        seen.extend(p.batches())
    assert len(seen) == row // 4  # the batches before it are all delivered


def test_an_error_of_the_source_is_the_one_that_comes_out(processor):
    raised = ConfigError("train.csv, row 17: no json.")
    with pytest.raises(ConfigError, match="^train.csv, row 17: no json. Or set data.max_bad_fraction"):
        list(pipeline(processor, train=False, broken={6: raised}).batches())
    with pytest.raises(ConfigError, match=r"memory: step 1, rows \[4, 5, 6, 7\].*PermissionError: disk"):
        list(pipeline(processor, train=False, broken={6: PermissionError("disk")}).batches())


BROKEN = {2: b"", 5: b"\x00no picture", 7: picture(7)[:-40], 8: FileNotFoundError(2, "", "p8.png")}
CAUSES = {2: "empty", 5: "not a picture", 7: "truncated", 8: "missing"}


@pytest.mark.parametrize("threads", [0, 3])
def test_bad_rows_are_replaced_and_change_no_other_row(processor, threads, tmp_path):
    clean = list(pipeline(processor).batches(0, 6))
    options = {"threads": threads, "max_bad_fraction": 0.4, "bad_file": tmp_path / "bad.jsonl"}
    p = pipeline(processor, broken=BROKEN, **options)
    dirty = list(p.batches(0, 6))
    stood_in = 0
    for batch, truth in zip(dirty, clean, strict=True):
        bad = np.isin(truth["row"], list(BROKEN))
        same({k: v[~bad] for k, v in batch.items()}, {k: v[~bad] for k, v in truth.items()})
        assert not set(batch["row"]) & set(BROKEN)
        stood_in += bad.sum()
    assert stood_in > 4
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {line["row"]: line["cause"] for line in lines} == CAUSES and len(lines) == 4
    assert lines[0]["id"].startswith("p") and lines[0]["source"] == "memory"
    # The rows that stand in are the same after a resume, and nothing is listed twice.
    again = pipeline(processor, broken=BROKEN, **options)
    for batch, truth in zip(again.batches(3, 6), dirty[3:], strict=True):
        same(batch, truth)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 4


def test_bad_rows_do_not_count_in_evaluation(processor):
    p = pipeline(processor, train=False, broken=BROKEN, max_bad_fraction=0.4)
    batches = list(p.batches())
    rows, valid = (np.concatenate([b[k] for b in batches]) for k in ("row", "valid"))
    assert rows[valid].tolist() == [0, 1, 3, 4, 6, 9, 10]
    assert p.bad.summary() == "1 empty, 1 missing, 1 not a picture, 1 truncated"


def test_too_many_bad_rows_end_the_run(processor):
    with pytest.raises(ConfigError, match=r"memory: 3 of 11 rows cannot be read .* data.max_bad_fraction of 0.2"):
        list(pipeline(processor, train=False, broken=BROKEN, max_bad_fraction=0.2).batches())


def test_reading_may_stop_at_any_time(processor):
    for _ in range(3):
        batches = pipeline(processor).batches()
        next(batches)
        batches.close()


def test_fingerprint_is_of_the_source_and_the_processor(processor):
    assert pipeline(processor).fingerprint == f"memory-11/{processor.sha256}"


def test_impossible_requests_are_refused(processor):
    with pytest.raises(ConfigError, match="memory: no rows"):
        pipeline(processor, n=0)
    with pytest.raises(ConfigError, match="batch_size: found 0"):
        pipeline(processor, batch_size=0)
    with pytest.raises(ConfigError, match="batch of 4"):
        pipeline(processor, rows=np.array([0, 4]))
