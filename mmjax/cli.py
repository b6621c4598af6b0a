"""The command line: `mmjax train|eval|compare|merge|predict|tune|import|export|data|doctor`.

Heavy imports happen inside the commands, so that --help answers at once.

Exit codes: 0 done or already done, 2 bad input, 3 diverged (no finite gradient), 75 preempted and saved,
1 anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmjax.errors import ConfigError

DIVERGED, BAD_INPUT = 3, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    from mmjax.config import parse_overrides

    try:
        return known.run(known, parse_overrides(rest))
    except ConfigError as error:
        action = f" {known.action}" if hasattr(known, "action") else ""
        print(f"mmjax {known.command}{action}: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmjax", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    train = command("train", _train, "Train from a config file; goes on where the workdir's last checkpoint ends.")
    train.add_argument(
        "--config", required=True, help="a Python file with get_config(); override keys with --config.a.b=VALUE"
    )
    train.add_argument("--workdir", type=Path, help="where checkpoints, metrics and pictures go")
    train.add_argument(
        "--dry_run", action="store_true", help="print parameters, sharding, batch, FLOPs and memory, then stop"
    )
    train.add_argument(
        "--compare",
        action="store_true",
        help="at the end, judge the test sets before training and after it; always so with init.path and data.test",
    )
    train.add_argument("--smoke", action="store_true", help="small widths, depth 2, one step: does it run at all?")

    evaluate = command(
        "eval", _eval, "Judge a trained workdir on config.data.eval, else its test, else its validation sets."
    )
    evaluate.add_argument("--workdir", type=Path, required=True)
    evaluate.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")

    compare = command(
        "compare", _compare, "Two trained workdirs on the same test sets, or two files of predictions: what changed?"
    )
    compare.add_argument(
        "--before", type=Path, help="a workdir, or a file DIR/eval/SET.jsonl; else --after as it began"
    )
    compare.add_argument("--after", type=Path, required=True, help="the same of the other; its test sets are judged")

    merged = command("merge", _merge, "Write a workdir that needs nothing else: LoRA merged, base inside.")
    merged.add_argument("--workdir", type=Path, required=True)
    merged.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")
    merged.add_argument("--out", type=Path, required=True, help="a new workdir, for eval, predict and init.path")

    predict = command("predict", _predict, "Caption, answer, rank or classify pictures with a trained workdir.")
    predict.add_argument("--workdir", type=Path, required=True)
    predict.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")
    predict.add_argument("--image", type=Path, nargs="+", default=[], help="picture files; what is said is printed")
    predict.add_argument("--input", default="", help="or a folder, a csv or jsonl, any set, with its own questions")
    predict.add_argument("--root", default="", help="where relative pictures of --input are looked for")
    predict.add_argument("--question", help="asked about every picture")
    predict.add_argument("--labels", help="comma-separated texts, ranked by how well they fit each picture")
    predict.add_argument("--answers", help="comma-separated: the decoder chooses the likeliest, in place of writing")
    predict.add_argument("--out", type=Path, help="a jsonl of results; a second run goes on where it ends")
    predict.add_argument("--panel", type=Path, help="a PNG of the first pictures and what is said of them")

    tune = command("tune", _tune, "Search for hyper-parameters: trials are runs, bad ones are given up early.")
    tune.add_argument("--config", required=True, help="as of train; override keys with --config.a.b=VALUE")
    tune.add_argument("--workdir", type=Path, required=True, help="the search; a second run goes on with it")
    tune.add_argument(
        "--space", action="append", required=True, help="KEY=log:LOW:HIGH, KEY=uniform:..., KEY=int:... or KEY=A,B,C"
    )
    tune.add_argument("--trials", type=int, required=True, help="how many in all")
    tune.add_argument("--metric", default="", help="as validation/vqa/accuracy; else config.checkpoint.best")

    imported = command("import", _import, "Read a Hugging Face folder into a workdir that every other command reads.")
    imported.add_argument("folder", metavar="HF_DIR", help="config.json, safetensors, vocabulary, ...")
    imported.add_argument("--workdir", type=Path, required=True, help="a new folder")

    export = command("export", _export, "Write a trained workdir as a Hugging Face folder.")
    export.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    export.add_argument("--workdir", type=Path, required=True)
    export.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")
    export.add_argument("--to", choices=("hf",), default="hf", help="the layout of the folder")
    export.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the tensors")

    data = commands.add_parser("data", help=(text := "Look at data, time it, pack it."), description=text)
    _data_commands(data.add_subparsers(dest="action", required=True, metavar="ACTION"))

    command("doctor", _doctor, "Say what is installed, which devices answer, and whether the folders can be written.")
    return parser


def _data_commands(actions) -> None:
    def action(name: str, run, text: str, config: bool = True) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        if config:
            added.add_argument("--config", required=True, help="as of train; override keys with --config.a.b=VALUE")
        return added

    inspect = action(
        "inspect", _inspect, "What a set is: fields, counts, examples, lengths, duplicates, bad rows.", config=False
    )
    inspect.add_argument("path", metavar="PATH", help="a file or folder, or tfds:NAME")
    inspect.add_argument("--length", type=int, default=32, help="tokens: how many texts would be cut at it?")
    inspect.add_argument(
        "--tokenizer", default="", help="a vocabulary file or folder; else one is trained on the texts"
    )
    inspect.add_argument("--split", default="", help="which split of a tfds or parquet set")
    inspect.add_argument("--root", default="", help="where relative pictures are looked for")
    inspect.add_argument("--format", default="auto", help="the name of a format, instead of telling by the content")

    preview = action("preview", _preview, "Rows of real training batches as the model sees them, as PNG and text.")
    preview.add_argument("--out", type=Path, default=Path("preview.png"), help="the PNG file")
    preview.add_argument("--rows", type=int, default=8, help="rows of each stream")

    bench = action("bench", _bench, "How fast the input is by itself, and where its time goes.")
    bench.add_argument("--steps", type=int, default=100, help="batches of each stream")

    pack = action("pack", _pack, "Write what the processor makes into arrays that train reads without TensorFlow.")
    pack.add_argument("--out", type=Path, required=True, help="a new folder")


def _train(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.experiment import load

    config, mapping = load(known.config, overrides, smoke=known.smoke)
    if known.dry_run:
        from mmjax.dry_run import dry_run

        return dry_run(config)
    if known.workdir is None:
        raise ConfigError("--workdir: missing. It names the folder for checkpoints, metrics and pictures.")
    from mmjax.run import Diverged
    from mmjax.train import train

    try:
        code = train(config, mapping, known.workdir)
    except Diverged as error:
        print(f"mmjax train: {error}", file=sys.stderr)
        return DIVERGED
    if code == 0 and (known.compare or config.init.path and config.data.test):
        from mmjax.comparison import compare_run

        base = {"init.path": config.init.path} if config.init.path else {}  # where it lies now, if it has moved
        return compare_run(known.workdir, base, config.data)
    return code


def _eval(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.trained import evaluate

    return evaluate(known.workdir, known.checkpoint, overrides)


def _compare(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.comparison import compare

    return compare(known.before, known.after, overrides)


def _merge(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.merge import merge

    return merge(known.workdir, known.checkpoint, overrides, known.out)


def _predict(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.predict import Request, predict

    labels, answers = _texts(known.labels), _texts(known.answers)
    return predict(
        known.workdir,
        known.checkpoint,
        overrides,
        images=known.image,
        source=known.input,
        root=known.root,
        request=Request(known.question or "", labels, answers),
        out=known.out,
        panel=known.panel,
    )


def _texts(given: str | None) -> tuple[str, ...]:
    """Comma-separated texts."""
    return tuple(text.strip() for text in (given or "").split(",") if text.strip())


def _import(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.pretrained.importing import import_folder

    return import_folder(known.folder, known.workdir, overrides)


def _export(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.pretrained.exporting import export_workdir

    return export_workdir(known.workdir, known.checkpoint, overrides, known.out, known.dtype)


def _tune(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.tune import tune

    return tune(known.config, overrides, known.workdir, known.space, known.trials, known.metric)


def _inspect(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.inspection import inspect

    if overrides:
        raise ConfigError("takes no --config values.")
    names = ("length", "tokenizer", "root", "split", "format")
    print(inspect(known.path, **{name: getattr(known, name) for name in names}))
    return 0


def _preview(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.preview import preview

    return preview(known.config, overrides, known.out, known.rows)


def _bench(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.input_bench import bench

    return bench(known.config, overrides, known.steps)


def _pack(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.pack import pack_sets

    return pack_sets(known.config, overrides, known.out)


def _doctor(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.doctor import doctor

    if overrides:
        raise ConfigError("doctor takes no --config values.")
    return doctor()


if __name__ == "__main__":
    sys.exit(main())
