"""The command `mmjax`, and `python -m mmjax`."""

import sys

from mmjax import huge_pages


def run() -> None:
    huge_pages.ask()
    from mmjax.cli import main

    sys.exit(main())


if __name__ == "__main__":
    run()
