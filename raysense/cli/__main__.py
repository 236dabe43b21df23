"""``python -m raysense.cli``: the command ``raysense``."""

import sys

from raysense.cli import main

sys.exit(main())
