"""``python -m drloss``, which is what torchrun starts."""

import sys

from drloss.cli import main

sys.exit(main())
