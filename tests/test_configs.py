"""Every file in configs/ is built in full, and runs a step in smoke, on data of the layout that it names."""

import json
import re
import shlex
from pathlib import Path

import jax
import pytest

from mmjax import assemble, cli, sharding
from mmjax.experiment import load
from mmjax.train_step import Objective, make_train_step
from tests.pretrained.with_processor import complete

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """config name -> overrides: a root folder with a few drawn pictures in the layout that the config reads, and tiny
    folders of public weights where it begins with some.
    """
    from mmjax.data.scenes import make_record

    records = [make_record("easy", "train", i, size=32) for i in range(24)]
    easy = tmp_path_factory.mktemp("easy_vqa")
    (easy / "train" / "images").mkdir(parents=True)
    questions = []
    for i, record in enumerate(records):
        (easy / "train" / "images" / f"{i}.png").write_bytes(record["image"])
        questions += [[qa["question"], qa["answers"][0], i] for qa in record["qa"]]
    (easy / "train" / "questions.json").write_text(json.dumps(questions))
    flickr = tmp_path_factory.mktemp("flickr8k")
    (flickr / "images").mkdir()
    for name, part in (("train.csv", records[:16]), ("dev.csv", records[16:])):
        lines = ["image,caption"]
        for record in part:
            file = record["id"].replace("/", "_") + ".png"
            (flickr / "images" / file).write_bytes(record["image"])
            lines += [f'{file},"{text}"' for text in record["texts"]]
        (flickr / name).write_text("\n".join(lines) + "\n")
    nlvr = tmp_path_factory.mktemp("nlvr")
    (nlvr / "images" / "2").mkdir(parents=True)
    examples = []
    for i, record in enumerate(records):
        example = {"sentence": f"There are {i} boxes", "label": ("true", "false")[i % 2], "directory": "2"}
        examples.append(json.dumps({**example, "identifier": f"{i}-0"}))
        for order in range(6):
            (nlvr / "images" / "2" / f"dev-{i}-0-{order}.png").write_bytes(record["image"])
    (nlvr / "dev.json").write_text("\n".join(examples))
    clip = complete("clip", tmp_path_factory.mktemp("public") / "clip", end=60)
    llama = complete("llama", clip.parent / "llama")
    bert = complete("bert", clip.parent / "bert")
    public = {
        "warm_start": {"init.patch_encoder": str(clip), "init.decoder": str(llama)},
        "flickr8k_minilm": {"init.text_encoder": str(bert), "processor.length": "16"},
    }
    classes = tmp_path_factory.mktemp("cifar10")
    for i, record in enumerate(records):
        folder = classes / record["scene"][0]["shape"]
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.png").write_bytes(record["image"])
    rooms = tmp_path_factory.mktemp("daquar")
    (rooms / "images").symlink_to(easy / "train" / "images")
    asked = [{"image": f"{i}.png", "question": q, "answer": [a]} for q, a, i in questions]
    (rooms / "train.jsonl").write_text("\n".join(map(json.dumps, asked)))
    roots = {"easy_vqa": easy, "vqa_lora": easy, "nlvr": nlvr, "cifar10": classes, "daquar": rooms}
    roots |= dict.fromkeys(("flickr8k", "flickr8k_captions", "flickr8k_minilm", "warm_start"), flickr)
    return {name: {"data.root": str(root), **public.get(name, {})} for name, root in roots.items()}


@pytest.fixture(scope="session")
def trained(sets, tmp_path_factory):
    """(config name, full) -> the workdir of a step of it: in smoke, or of one that begins at random in its full sizes.
    Configs that begin with another run begin with that of flickr8k.py.
    """
    made = {}

    def run(name, full=False):
        if (name, full) not in made:
            workdir = made[name, full] = tmp_path_factory.mktemp(name) / "w"
            said = ["train.steps=1", "train.epochs=0", "data.train.batch_size=8", "eval.start=False"] if full else []
            said += [f"{k}={v}" for k, v in overrides(name).items()]
            command = ["train", "--config", str(ROOT / "configs" / f"{name}.py"), "--workdir", str(workdir)]
            command += [] if full else ["--smoke"]
            assert cli.main([*command, *(f"--config.{s}" for s in said)]) == 0
        return made[name, full]

    def overrides(name, full=False):
        begins = "--config.init.path=" in (ROOT / "configs" / f"{name}.py").read_text()
        return sets.get(name, {}) | ({"init.path": str(run("flickr8k", full))} if begins else {})

    run.overrides = overrides
    return run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_config_is_built_in_full_and_its_step_traced(file, trained, monkeypatch):
    """Full widths, depths and batch; only the drawn set is small, so that the test need not draw 30,000 pictures."""
    from mmjax import experiment, smoke

    small, begun = experiment.read_file, trained.overrides(file.stem, full=True)

    def read(path):
        mapping = small(path)
        smoke._shrink_sources({"train": {k: v for k, v in mapping["data"]["train"].items() if k == "path"}})
        train = mapping["data"]["train"]
        if train["path"].startswith("tfds:"):
            train["path"] += "_16train"
        return mapping

    monkeypatch.setattr(experiment, "read_file", read)
    config, _ = load(str(file), begun)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    model = assemble.build_model(config, processor)
    plan = assemble.make_plan(config, model, data, mesh)
    tasks = {stream: config.tasks_of(stream) for stream in config.data.streams}
    objective = Objective(model, tasks, config.train.accumulate, config.adapt.scale)
    batch = {n: next(p.batches(0, 1)) for n, p in assemble.train_pipelines(config, data, processor, mesh).items()}
    step = make_train_step(objective, plan.tx, seed=0, ema=config.train.ema)
    with sharding.on_mesh(mesh):
        new, out = jax.eval_shape(step, plan.abstract, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), plan.abstract)
    assert {f"{name}/loss" for name in config.tasks} <= out["metrics"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_config_runs_a_step_in_smoke(file, trained):
    assert (trained(file.stem) / "eval").is_dir()


@pytest.mark.slow
def test_three_commands_pre_train_adapt_and_compare(trained, capsys):
    """The story of the README: LoRA on top of pairs, then before against after on the pictures that were held out."""
    workdir = trained("vqa_lora")
    capsys.readouterr()
    assert cli.main(["compare", "--after", str(workdir)]) == 0
    table = capsys.readouterr().out
    assert "before" in table and "after" in table and "vqa/accuracy" in table
    assert list((workdir / "eval").glob("*.png"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_docstring_gives_command_hardware_minutes_and_expectation(file):
    text = file.read_text().split('"""')[1]
    assert f"mmjax train --config configs/{file.name} --workdir" in text
    assert re.search(r"\d+ (CPU cores|GPU|TPU)", text) and re.search(r"\d+ minutes", text) and "expected" in text


PAGES = [ROOT / "README.md", ROOT / "configs" / "README.md", *CONFIGS]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_mmjax_command_on_the_page_parses(page):
    """The command line of each `mmjax ...` example is one that the parser takes, and its config file exists."""
    text, names = (
        page.read_text().replace("\\\n", " "),
        "train|eval|compare|merge|predict|tune|import|export|data|doctor",
    )
    commands = re.findall(rf"^ *(?:\$ )?(mmjax (?:{names})\b[^\n`#]*)", text, re.MULTILINE)
    inline = re.findall(rf"`(mmjax (?:{names})\b[^`]*)`", text)
    for command in [*commands, *inline]:
        known, rest = cli._parser().parse_known_args(shlex.split(command)[1:])
        assert all(a.startswith("--config.") for a in rest), command
        file = Path(getattr(known, "config", None) or "FILE")
        assert file.stem.isupper() or (ROOT / file).is_file(), command  # FILE and YOURS.py stand for the reader's own
    assert commands or page.name == "README.md"
