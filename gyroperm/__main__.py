"""``python -m gyroperm`` is the ``gyroperm`` command."""

import sys

from gyroperm.cli import main

if __name__ == "__main__":
    sys.exit(main())
