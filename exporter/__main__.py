"""``python -m exporter`` is the ``secateur`` command."""

import sys

from exporter.cli import main

sys.exit(main())
