"""`python -m engine.cli`, where the console script is not installed."""

import sys

from engine.cli import main

sys.exit(main())
