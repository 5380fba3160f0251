"""``python -m exporter`` is the ``secateur`` command."""

import sys

from exporter.cli import main
from exporter.recipes.processes import bind_to_parent

sys.exit(main() if bind_to_parent() else 1)
