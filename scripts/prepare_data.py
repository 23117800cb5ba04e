"""Make data sets in the layouts the loaders read, and check the ones that are there.

    python scripts/prepare_data.py cub-subset SOURCE datasets/cub_subset [--check]
    python scripts/prepare_data.py check cub datasets/cub [--sheet sheet.png]

Running a command twice does no harm: what is complete is left alone, and nothing is ever half written.
"""

import argparse
import sys
from pathlib import Path

from invkit.data.cub_subset import write_subset


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("cub-subset")
    one.add_argument("source", type=Path)
    one.add_argument("target", type=Path)
    arguments = parser.parse_args()
    print(write_subset(arguments.source, arguments.target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
