"""Entry point of `qcse` and of `python -m qcse`."""

from __future__ import annotations

import sys

from .cli.output import prepare


def main() -> int:
    prepare(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        from .cli.main import main as cli

        return cli()
    except KeyboardInterrupt:  # before the command line has begun, which takes a second
        print("qcse: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
