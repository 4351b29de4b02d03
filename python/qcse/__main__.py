"""Entry point of the command line. It must say what is missing, so it imports nothing that can be."""

import sys

from .output import prepare


def main() -> int:
    prepare(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        return _command()
    except KeyboardInterrupt:  # before the command line has begun, which takes a second
        print("qcse: interrupted", file=sys.stderr)
        return 130


def _command() -> int:
    if sys.argv[1:2] == ["doctor"]:
        from .doctor import doctor

        return doctor(sys.argv[2:])
    try:
        from .cli import main as cli
    except ModuleNotFoundError as error:
        print(
            f"qcse: the package {error.name} is not installed; pip install 'qcse[train]'. `qcse doctor` lists all",
            file=sys.stderr,
        )
        return 1
    return cli()


if __name__ == "__main__":
    sys.exit(main())
