"""``python -m raysense.search``: the main job, the same as ``raysense search``."""

import sys

from raysense.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], command="search"))
