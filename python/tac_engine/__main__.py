"""``python -m tac_engine`` is the command line."""

from __future__ import annotations

import sys

from tac_engine.cli import main

sys.exit(main())
