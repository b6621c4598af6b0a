"""Predictions on files, folders and lists: the same whatever the batch, resumed after a kill, bad files as lines."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax import cli
from mmjax.predict import words

ASK = ["--question", "what color is the circle?", "--labels", "a red square,a blue circle"]


@pytest.fixture
def run(trained, capsys):
    """arguments -> (exit code, output, errors) of mmjax predict on the trained workdir."""
    workdir, _ = trained

    def call(*arguments):
        code = cli.main(["predict", "--workdir", str(workdir), "--config.mesh.data=0", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predict_captions_answers_ranks_and_draws(run, tiny_set, tmp_path):
    image = tiny_set / "images" / "00.png"
    code, out, _ = run("--image", image, image, *ASK, "--panel", tmp_path / "p.png")
    assert code == 0 and out.count("answer: ") == 2 and out.count("a red square") == 2
    assert Image.open(tmp_path / "p.png").width == 20 + 2 * 260
    (tmp_path / "no.png").write_text("text")
    code, _, err = run("--image", tmp_path / "no.png")
    assert code == 2 and "is not a picture that can be read" in err


@pytest.mark.slow
def test_a_folder_is_predicted_in_batches_as_alone_and_a_killed_run_goes_on(run, tiny_set, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for i in range(11):
        (folder / ("sub" if i % 2 else "") / f"{i}.png").write_bytes(
            (tiny_set / "images" / f"{i:02d}.png").read_bytes()
        )
    (folder / "bad.png").write_bytes(b"\x89PNG, not really")
    out = tmp_path / "results.jsonl"
    command = ("--input", folder, *ASK, "--out", out, "--panel", tmp_path / "p.png")
    code, said, _ = run(*command)
    assert code == 0 and "12 of 12 rows; 1 pictures cannot be read" in said
    lines = read(out)
    assert sorted(line["id"] for line in lines) == sorted(
        ["bad.png", *(f"{'sub/' if i % 2 else ''}{i}.png" for i in range(11))]
    )
    (bad,) = (line for line in lines if "error" in line)
    assert bad["id"] == "bad.png" and "vqa" not in bad
    whole = {line["id"]: line for line in lines}
    code, said, _ = run("--image", folder / "4.png", *ASK, "--out", tmp_path / "one.jsonl")
    (alone,) = read(tmp_path / "one.jsonl")
    assert words(alone) == words(whole["4.png"]) and len(words(alone)) >= 4
    np.testing.assert_allclose(
        [p for _, p in alone["contrastive"]["ranking"]],
        [p for _, p in whole["4.png"]["contrastive"]["ranking"]],
        atol=1e-4,
    )
    kept = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:5]) + kept[5][: len(kept[5]) // 2])  # killed within a line
    assert run(*command)[0] == 0
    again = read(out)
    assert [line["id"] for line in again[:5]] == [line["id"] for line in lines[:5]]
    assert {line["id"]: words(line) for line in again} == {line["id"]: words(line) for line in lines}
    before = out.read_bytes()
    assert run(*command)[0] == 0 and out.read_bytes() == before  # all is done
    drawn = ("--input", folder, "--out", tmp_path / "d.jsonl", "--config.tasks.captioning.generation.temperature=2.0")
    assert run(*drawn)[0] == 0
    kept = (tmp_path / "d.jsonl").read_bytes().splitlines(keepends=True)
    captions = {line["id"]: words(line) for line in read(tmp_path / "d.jsonl")}
    assert captions.keys() == whole.keys()
    (tmp_path / "d.jsonl").write_bytes(b"".join(kept[:5]))
    assert run(*drawn)[0] == 0  # other rows stand beside one another now
    assert {line["id"]: words(line) for line in read(tmp_path / "d.jsonl")} == captions
    assert run(*drawn[:-1])[0] == 2, "lines of another temperature are not mixed"
    code, _, err = run("--input", folder, "--out", out)
    assert code == 2 and "holds results of another run: question was 'what color" in err


@pytest.mark.slow
def test_lists_bring_questions_of_their_own_with_answers_or_without(run, tiny_set, tmp_path):
    images = tiny_set / "images"
    rows = [{"image": f"{i:02d}.png", "question": f"what color is shape {i}?"} for i in (1, 1, 2)]
    rows.append({"image": "absent.png", "question": "is there a star?"})
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, said, _ = run("--input", tmp_path / "asked.jsonl", "--root", images, "--out", tmp_path / "a.jsonl")
    assert code == 0 and "4 of 4 rows; 1 pictures" in said
    lines = read(tmp_path / "a.jsonl")
    assert [line["id"] for line in lines] == ["01.png", "01.png#2", "02.png", "absent.png"]
    assert lines[0]["vqa"]["question"] == ["what color is shape 1?"] and "truth" not in lines[0]["vqa"]
    assert "no file" in lines[3]["error"] and "caption" in lines[2]["captioning"]
    (tmp_path / "plain.csv").write_text("image\n03.png\n04.png\n")
    code, _, _ = run("--input", tmp_path / "plain.csv", "--root", images, "--out", tmp_path / "b.jsonl")
    assert code == 0 and all("vqa" not in line and "captioning" in line for line in read(tmp_path / "b.jsonl"))
    # A set with the truth in it is judged line by line.
    assert run("--input", tiny_set / "all.jsonl", "--out", tmp_path / "c.jsonl")[0] == 0
    lines = read(tmp_path / "c.jsonl")
    assert len(lines) == 20 and all(0 <= line["vqa"]["right"] <= 1 and line["vqa"]["truth"] for line in lines)


def test_what_is_asked_wrongly_is_refused_before_the_model_is_read(run, tiny_set, tmp_path):
    for arguments, message in (
        ([], "--image, --input: expected one of them"),
        (["--image", "a.png", "--input", "b"], "expected one of them"),
        (["--input", tmp_path], "--out: missing"),
        (["--image", "a.png", "--out", tmp_path / "x.png"], "A panel of pictures is --panel"),
        (["--image", tmp_path / "none.png"], "--image: no file"),
        (["--input", tmp_path / "none", "--out", tmp_path / "x.jsonl"], "no file or folder"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and message in err
    image = tiny_set / "images" / "00.png"
    code, _, err = run("--image", image, "--question", "what?", "--answers", "red, blue")
    assert code == 2 and "--answers: this run has no vqa task whose decoder could choose" in err


@pytest.mark.slow
def test_a_decoder_that_writes_may_choose_from_a_list(tiny_mapping, run_file, tiny_set, tmp_path, capsys):
    file = run_file(tiny_mapping("vqa_generate", train__steps=1, mesh__data=0))
    assert cli.main(["train", "--config", str(file), "--workdir", str(tmp_path / "w")]) == 0
    command = ["predict", "--workdir", str(tmp_path / "w"), "--input", str(tiny_set / "images"), "--question", "what?"]
    assert cli.main([*command, "--answers", "red, blue", "--out", str(tmp_path / "a.jsonl")]) == 0
    said = [line["vqa_generate"] for line in read(tmp_path / "a.jsonl")]
    assert len(said) == 20 and {answer for line in said for answer in line["answer"]} <= {"red", "blue"}
    assert all(0.5 <= sure <= 1 for line in said for sure in line["confidence"])
    capsys.readouterr()
    assert cli.main([*command, "--answers", "red", "--out", str(tmp_path / "a.jsonl")]) == 2
    assert "holds results of another run: answers was ['red', 'blue'], is ['red']" in capsys.readouterr().err
    judge = ["eval", "--workdir", str(tmp_path / "w")]
    assert (
        cli.main([*judge, "--config.tasks.vqa_generate.answer=rank", "--config.tasks.vqa_generate.candidates=0"]) == 0
    )
    assert "vqa_generate/accuracy" in capsys.readouterr().out
    assert cli.main([*judge, "--config.tasks.vqa_generate.answer=class"]) == 2
    assert "found 'class', but the run was trained to answer as 'generate'" in capsys.readouterr().err


@pytest.mark.slow
def test_each_question_about_a_picture_is_a_conversation_of_its_own(tiny_mapping, run_file, tiny_set, tmp_path, capsys):
    mapping = tiny_mapping("chat", data__train__path="talks.json", processor__chat_length=40, train__steps=1)
    mapping["model"] |= {"text_encoder": None, "fusion": {"name": "none"}}
    mapping["mesh"] = {"data": 0}
    assert cli.main(["train", "--config", str(run_file(mapping)), "--workdir", str(tmp_path / "w")]) == 0
    asked = ["what color is the circle?", "how many shapes are there?"]
    rows = [{"image": "00.png", "question": question, "answer": "two"} for question in asked]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["predict", "--workdir", str(tmp_path / "w"), "--root", str(tiny_set / "images")]
    answers = tmp_path / "a.jsonl"
    assert cli.main([*command, "--input", str(tmp_path / "asked.jsonl"), "--out", str(answers)]) == 0
    said = read(answers)
    assert len(said) == 2 and all(
        line["chat"]["said"][0].startswith(question) for line, question in zip(said, asked, strict=True)
    )
    assert cli.main([*command[:3], "--input", str(tiny_set / "talks.json"), "--root", str(tiny_set / "images"),
                     "--question", asked[0], "--out", str(tmp_path / "b.jsonl")]) == 0  # fmt: skip
    told = [line for line in read(tmp_path / "b.jsonl") if "error" not in line]
    assert told and all(line["chat"]["said"][0].startswith(asked[0]) for line in told)
