"""Sums, metric files, throughput and progress."""

import io
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from mmjax import metrics


def test_sums_over_unequal_batches_give_the_mean_and_not_a_mean_of_means():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=n).astype(np.float32) for n in (1, 7, 3)]
    sums = {}
    for part in rows:
        sums = metrics.add(sums, {"x": (part.sum(), np.float32(len(part)))})
    assert metrics.divide(sums)["x"] == pytest.approx(np.concatenate(rows).mean(), abs=1e-6)


def test_long_sums_keep_more_than_float32():
    sums = {"x": (np.float32(2**24), np.float32(2**24))}
    for _ in range(10):
        sums = metrics.add(sums, {"x": (np.float32(1), np.float32(0))})
    assert sums["x"][0] == 2**24 + 10


def test_names_on_one_side_stay_and_nothing_measured_is_nan():
    sums = metrics.add({"a": (1.0, 2.0)}, {"b": (0.0, 0.0)})
    assert metrics.divide(sums)["a"] == 0.5
    assert math.isnan(metrics.divide(sums)["b"])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_resume_drops_later_lines_and_a_torn_one(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": np.float32(step / 2), "rows": {"main": "ab"}})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer = metrics.MetricWriter(tmp_path)
    writer.truncate_after(2)
    writer.scalars(3, {"loss": 7.0})
    writer.close()
    first = [{"step": s, "loss": s / 2, "rows": {"main": "ab"}} for s in (1, 2)]
    assert lines(tmp_path) == [*first, {"step": 3, "loss": 7.0}]


def test_torn_line_does_not_swallow_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = metrics.MetricWriter(tmp_path)
    writer.scalars(3, {"loss": 3.0})
    writer.close()
    assert metrics.read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 3.0}]


def test_not_a_number_is_null_in_json(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.scalars(1, {"loss": float("nan"), "norm": np.float32("inf"), "n": np.int64(3)})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": None, "norm": None, "n": 3}]


def test_tensorboard_reads_what_was_written_and_forgets_what_was_undone(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    for restored, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = metrics.MetricWriter(tmp_path)
        writer.truncate_after(restored)
        for step in steps:
            writer.scalars(step, {"loss": step + restored, "rows": "ab"})
        writer.text(3, "samples", "a **cat**")
        writer.image(3, "panel", image)
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 5), (4, 6)]
    assert events.Tags()["scalars"] == ["loss"]
    assert events.Tensors("samples")[0].tensor_proto.string_val == [b"a **cat**"]
    from PIL import Image

    shown = events.Images("panel")[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), image)


def test_inactive_writer_writes_nothing(tmp_path):
    writer = metrics.MetricWriter(tmp_path / "run", active=False)
    writer.truncate_after(0)
    writer.scalars(1, {"loss": 1.0})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()


def test_writing_imports_no_tensorflow(tmp_path):
    program = (
        "import sys; from mmjax.metrics import MetricWriter; w = MetricWriter(sys.argv[1]); w.scalars(1, {'loss': 1.0})"
        "; w.text(1, 't', 'x'); w.close(); assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_throughput_leaves_out_the_first_step_and_pauses():
    now = 0.0
    speed = metrics.Throughput(examples=8, window=3, clock=lambda: now)
    assert speed.numbers() == {} and speed.seconds_left(5) is None
    waited = 0.0
    for seconds, wait in ((100.0, 50.0), (9.0, 9.0), (1.0, 0.5), (2.0, 0.25), (3.0, 0.75)):
        now += seconds
        waited += wait
        speed.step(waited)
    now += 1000.0
    speed.skip(1000.0)
    numbers = speed.numbers()
    assert numbers["examples_per_second"] == pytest.approx(8 * 3 / 6)
    assert numbers["data_wait"] == pytest.approx(1.5 / 6)
    assert numbers["step_seconds_p50"] == pytest.approx(2.0)
    assert numbers["step_seconds_p95"] == pytest.approx(2.9)
    assert speed.seconds_left(10) == pytest.approx(20.0)
    now += 2.0
    speed.step(waited)
    assert speed.numbers()["step_seconds_p50"] == pytest.approx(2.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_a_few_lines_elsewhere():
    for file in (Terminal(), io.StringIO()):
        with metrics.Progress(2, 6, examples=4, file=file) as bar:
            for step in range(3, 7):
                time.sleep(0.002)
                bar.advance(0.001 * step)
                bar.show(1 / step)
                with bar.paused():
                    pass
        text = file.getvalue()
        assert "loss 0.1667" in text and "ex/s" in text and "wait" in text and "ETA 00:00" in text
        if isinstance(file, Terminal):
            assert "\r" in text and "6/6" in text
        else:
            assert text.count("\n") == 2 and "step 3/6: loss 0.3333" in text and "step 6/6" in text


def test_progress_over_items_is_quiet_when_quick():
    file = io.StringIO()
    assert list(metrics.progress(range(5), "evaluate", file=file)) == list(range(5))
    assert file.getvalue() == ""
    assert list(metrics.progress(range(5), "evaluate", every=0, file=file)) == list(range(5))
    assert "evaluate: 4/5 batch, ETA 00:00" in file.getvalue()
