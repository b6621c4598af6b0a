"""`mmjax import`: a workdir that answers at once; pictures of another size, new tokens; broken folders end with 2."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from mmjax import cli
from mmjax.errors import ConfigError
from mmjax.pretrained.source import Published
from mmjax.pretrained.tensor_files import WHOLE
from mmjax.train_step import nested
from mmjax.trained import open_trained
from tests.pretrained.test_folder import rewritten
from tests.pretrained.with_processor import tokenizer_json


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return path


def imported(folder, workdir, *overrides):
    return cli.main(["import", str(folder), "--workdir", str(workdir), *(f"--config.{o}" for o in overrides)])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_contrastive_folder_ranks_labels_at_once(name, folder, picture, tmp_path, capsys):
    assert imported(folder(name), tmp_path / "w") == 0
    said = capsys.readouterr().out
    assert "are those of" in said and "begin anew" not in said and "tasks: contrastive" in said
    asked = [
        "predict",
        "--workdir",
        str(tmp_path / "w"),
        "--image",
        str(picture),
        "--labels",
        "a red circle,a blue dog",
    ]
    assert cli.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {line.split("%")[1].strip() for line in lines} == {"a red circle", "a blue dog"}


def test_a_backbone_without_tasks_is_judged_by_its_features(folder, tiny_set, tmp_path, capsys):
    assert imported(folder("vit_bare"), tmp_path / "w") == 0
    data = [f"--config.data.{x}" for x in (f"root={tiny_set}", "train.path=all.jsonl", "train.batch_size=8")]
    command = ["eval", "--workdir", str(tmp_path / "w"), "--config.eval.probe=true", "--config.mesh.data=0"]
    assert cli.main([*command, *data, "--config.data.holdout=0.4"]) == 0
    told = capsys.readouterr().out
    assert "probe/linear_accuracy" in told and "probe/neighbours_accuracy" in told
    assert cli.main(["eval", "--workdir", str(tmp_path / "w"), *data]) == 2
    assert "config.tasks: empty, so that nothing is said" in capsys.readouterr().err
    assert cli.main(["compare", "--after", str(tmp_path / "w")]) == 2
    assert "was imported, not trained" in capsys.readouterr().err


def test_a_classifier_names_its_classes(folder, picture, tmp_path, capsys):
    assert imported(folder("vit"), tmp_path / "w") == 0
    assert cli.main(["predict", "--workdir", str(tmp_path / "w"), "--image", str(picture)]) == 0
    assert "LABEL_" in capsys.readouterr().out


LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% if message['content'] is string %}"
    "{{ message['content'] + ' ' }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image> ' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_conversations_are_written_by_the_chat_template_of_the_folder(folder, tmp_path, picture):
    source = shutil.copytree(folder("llava"), tmp_path / "f")
    (source / "chat_template.jinja").write_text(LLAVA_CHAT)
    assert imported(source, tmp_path / "w") == 0
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["processor"]["chat_template"]["jinja"] == LLAVA_CHAT
    asked = ["predict", "--workdir", str(tmp_path / "w"), "--image", str(picture), "--question", "what is there ?"]
    assert cli.main(asked) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    parts = [{"type": "image"}, {"type": "text", "text": "what is there ?"}]
    want = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=LLAVA_CHAT, add_generation_prompt=True, return_dict=False
    )
    record = {"id": "x", "image": b"", "messages": [{"role": "user", "content": parts}]}
    made = Published(source, "x").processor.conversations([record], pictures=False, reply=True)
    assert list(made["chat"][0][made["chat_mask"][0]]) == want


def test_eval_reads_an_imported_workdir_without_a_training_set(folder, tiny_set, tmp_path, capsys):
    assert imported(folder("clip"), tmp_path / "w") == 0
    asked = [
        "eval",
        "--workdir",
        str(tmp_path / "w"),
        f"--config.data.root={tiny_set}",
        "--config.data.eval.path=all.jsonl",
    ]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "contrastive/text_to_image_r1" in said and "baselines are fitted on this very set" in said


def logits(workdir, ids):
    trained = open_trained(workdir, "latest", {})
    outputs = trained.model.apply({"params": nested(trained.params)}, ids, method="decode")
    return trained, np.asarray(outputs.logits)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_added_token_leaves_the_old_logits_unchanged(name, folder, tmp_path, capsys):
    """llama: a head of its own; gpt2: tied."""
    ids = np.array([[1, 5, 9, 20, 33]])
    assert imported(folder(name), tmp_path / "old") == 0
    assert imported(folder(name), tmp_path / "new", "processor.tokenizer.added=<image>,<mark>") == 0
    assert "2 rows added to 61" in capsys.readouterr().out
    (_, old), (trained, new) = logits(tmp_path / "old", ids), logits(tmp_path / "new", ids)
    assert trained.processor.tokenizer.image == 61 and new.shape[-1] == 63
    np.testing.assert_array_equal(new[..., :61], old)
    table = np.asarray(trained.params["decoder/embed/embedding"])
    np.testing.assert_allclose(table[61:], np.repeat(table[:61].mean(0, keepdims=True), 2, 0), rtol=1e-4, atol=1e-7)


def test_a_table_longer_than_the_vocabulary_keeps_its_rows(tmp_path, folder):
    padded = shutil.copytree(folder("llama"), tmp_path / "padded")
    config = json.loads((padded / "config.json").read_text())
    (padded / "tokenizer.json").write_text(tokenizer_json(60, end=59))
    assert config["vocab_size"] == 61
    assert imported(padded, tmp_path / "w", "processor.tokenizer.added=<image>") == 0
    trained = open_trained(tmp_path / "w", "latest", {})
    assert trained.processor.tokenizer.image == 60  # the spare row
    assert trained.params["decoder/embed/embedding"].shape[0] == trained.processor.tokenizer.vocab_size == 61


def test_positions_are_resized_for_pictures_of_another_size(folder, tmp_path, capsys):
    from mmjax.pretrained.resizing import resize_positions

    assert imported(folder("clip"), tmp_path / "old") == 0
    assert imported(folder("clip"), tmp_path / "new", "processor.image.size=30") == 0
    said = capsys.readouterr().out
    assert "positions resized from 3 x 3 to 5 x 5" in said and "config.processor.image.size: 18 -> 30 overrides" in said
    old, new = (open_trained(tmp_path / w, "latest", {}) for w in ("old", "new"))
    table = np.asarray(old.params["patch_encoder/position"])
    np.testing.assert_allclose(new.params["patch_encoder/position"], resize_positions(table, (5, 5)), atol=1e-6)
    np.testing.assert_array_equal(new.params["patch_encoder/cls_position"], old.params["patch_encoder/cls_position"])
    assert new.model.image_size == (30, 30)


def test_a_sharded_and_scanned_import_is_the_same(folder, tmp_path):
    assert imported(folder("siglip"), tmp_path / "one") == 0
    more = ("mesh.fsdp=2", "model.patch_encoder.scan=true", "model.text_encoder.scan=true")
    assert imported(folder("siglip"), tmp_path / "two", *more) == 0
    one, two = (open_trained(tmp_path / w, "latest", {}) for w in ("one", "two"))
    assert two.config.model.patch_encoder.scan and two.mesh.shape["fsdp"] == 2
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(one.params), dict(two.params)))


def without(name):
    return lambda folder: (folder / name).unlink()


def changed(change):
    def harm(folder):
        made = rewritten("clip", folder.parent / "made", change)
        shutil.copy(made / WHOLE, folder / WHOLE)

    return harm


renamed_key = changed(lambda a: {k.replace("logit_scale", "logit_scael"): v for k, v in a.items()})
shape_off = changed(lambda a: {k: v[:-1] if k == "text_projection.weight" else v for k, v in a.items()})


def other_tokenizer(folder):
    (folder / "tokenizer.json").write_text(tokenizer_json(90, end=60))


def other_end(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 40}
    (folder / "config.json").write_text(json.dumps(config))


def eos_absent(folder):
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "<fin>"}))


def cut_off(folder):
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-10])


def lanczos(folder):
    told = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(told | {"resample": 1}))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (renamed_key, "no tensor 'logit_scale' (for contrastive_log_scale). Did you mean 'logit_scael'?"),
        (shape_off, "the tensor 'text_projection.weight' of "),
        (cut_off, "is cut off: the tensor"),
        (without(WHOLE), "has no model.safetensors and no model.safetensors.index.json"),
        (other_tokenizer, "has 90 tokens, the embedding table 61 rows. Is it the tokenizer of another model?"),
        (other_end, "config.json says that eos is token 40 ("),
        (eos_absent, "its eos token is '<fin>', which is not in the vocabulary"),
        (without("tokenizer.json"), "has tokenizer_config.json, but no vocabulary. Expected one of"),
        (without("tokenizer.json"), "config.processor.tokenizer.path=FOLDER_OR_FILE"),
        (lanczos, "resample is 1, expected 2 (bilinear) or 3 (bicubic)"),
    ],
)
def test_a_broken_folder_ends_with_2_and_is_named(harm, named, folder, tmp_path, capsys):
    broken = Path(shutil.copytree(folder("clip"), tmp_path / "f"))
    harm(broken)
    assert imported(broken, tmp_path / "w") == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "w" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.patch_encoder.activation=gelu", "found 'gelu', but the weights of"),
        ("model.text_encoder.width=64", "config.model.text_encoder.width: found 64, but the weights of"),
        ("model.patch_encoder.size=B", "config.model.patch_encoder.width: found 768"),
        ("model.embed_dim=7", "config.model.embed_dim: found 7, but the weights of"),
    ],
)
def test_a_setting_that_contradicts_the_weights_names_both(override, named, folder, tmp_path, capsys):
    assert imported(folder("clip"), tmp_path / "w", override) == 2
    assert named in capsys.readouterr().err


def test_a_workdir_that_holds_a_run_is_left_alone(folder, tmp_path, capsys):
    assert imported(folder("bert"), tmp_path / "w") == 0
    assert imported(folder("bert"), tmp_path / "w") == 2
    assert "holds a run already" in capsys.readouterr().err


def bare(folder, target):
    """The folder without any file of its tokenizer."""
    shutil.copytree(folder, target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).unlink()
    return target


@pytest.mark.parametrize("name", ["gpt2", "siglip"])
@pytest.mark.parametrize("file", ["", "tokenizer.json"])
def test_a_tokenizer_from_elsewhere_stands_in(name, file, folder, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for kept in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder(name) / kept, elsewhere)
    given = f"processor.tokenizer.path={elsewhere / file}"
    assert imported(bare(folder(name), tmp_path / "bare"), tmp_path / "one", given) == 0
    assert "no vocabulary" not in capsys.readouterr().out
    assert imported(folder(name), tmp_path / "two") == 0
    one, two = (open_trained(tmp_path / w, "latest", {}).processor for w in ("one", "two"))
    assert one.sha256 == two.sha256
    shutil.copy(folder("clip" if name == "gpt2" else "gpt2") / "tokenizer.json", elsewhere)
    (elsewhere / "tokenizer.json").write_text(tokenizer_json(90, end=60))
    assert imported(tmp_path / "bare", tmp_path / "three", given) == 2
    assert f"tokenizer of '{elsewhere}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "paligemma", "clip"])
def test_without_any_tokenizer_texts_are_ids_and_words_an_error(name, folder, tmp_path, capsys):
    source = bare(folder(name), tmp_path / "bare")
    assert imported(source, tmp_path / "w") == 0
    said = capsys.readouterr().out
    assert "has no vocabulary: its texts are ids ('5 17 3')" in said and "config.processor.tokenizer.path" in said
    assert cli.main(["export", "--workdir", str(tmp_path / "w"), "--to", "hf", str(tmp_path / "out")]) == 0
    assert imported(tmp_path / "out", tmp_path / "again") == 0
    one, two = (open_trained(tmp_path / w, "latest", {}) for w in ("w", "again"))
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(one.params), dict(two.params)))
    processor = one.processor
    assert processor.sha256 == two.processor.sha256
    assert processor.tokenizer.tokens(["5 17 33"]) == [[5, 17, 33]]
    assert processor.tokenizer.decode([5, 17, 33]) == "5 17 33"
    with pytest.raises(ConfigError, match="'a dog' has no token"):
        processor.tokenizer.tokens(["a dog"])
