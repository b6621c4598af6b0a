"""The command line: `mmjax train|eval|predict|doctor`.

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
        print(f"mmjax {known.command}: {error}", file=sys.stderr)
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
    train.add_argument("--smoke", action="store_true", help="small widths, depth 2, one step: does it run at all?")

    evaluate = command(
        "eval", _eval, "Judge a trained workdir on config.data.eval, else its test, else its validation sets."
    )
    evaluate.add_argument("--workdir", type=Path, required=True)
    evaluate.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")

    predict = command("predict", _predict, "Caption, answer, rank or classify pictures with a trained workdir.")
    predict.add_argument("--workdir", type=Path, required=True)
    predict.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step number")
    predict.add_argument("--image", type=Path, nargs="+", required=True, help="picture files")
    predict.add_argument("--question", help="asked about every picture")
    predict.add_argument("--labels", help="comma-separated texts, ranked by how well they fit each picture")
    predict.add_argument("--out", type=Path, help="a PNG panel of pictures and predictions")

    command("doctor", _doctor, "Say what is installed, which devices answer, and whether the folders can be written.")
    return parser


def _train(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.experiment import load

    config, mapping = load(known.config, overrides, smoke=known.smoke)
    from mmjax import train

    if known.dry_run:
        return train.dry_run(config)
    if known.workdir is None:
        raise ConfigError("--workdir: missing. It names the folder for checkpoints, metrics and pictures.")
    try:
        return train.train(config, mapping, known.workdir)
    except train.Diverged as error:
        print(f"mmjax train: {error}", file=sys.stderr)
        return DIVERGED


def _eval(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.trained import evaluate

    return evaluate(known.workdir, known.checkpoint, overrides)


def _predict(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.predict import predict

    labels = [t.strip() for t in known.labels.split(",") if t.strip()] if known.labels else []
    return predict(
        known.workdir, known.checkpoint, overrides, known.image, question=known.question, labels=labels, out=known.out
    )


def _doctor(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from mmjax.doctor import doctor

    if overrides:
        raise ConfigError("doctor takes no --config values.")
    return doctor()


if __name__ == "__main__":
    sys.exit(main())
