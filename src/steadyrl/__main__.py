"""`python -m steadyrl`."""

import sys

from steadyrl.cli import main

sys.exit(main())
