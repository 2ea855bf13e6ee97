"""Tests of toolkits that the development environment lacks run in environments of their own.

``make test-plugins`` names the folders that an environment is for; without that they are not
collected. There a toolkit that cannot be imported is an error.
"""

import os
from pathlib import Path

_HERE = Path(__file__).parent
_ASKED = os.environ.get("GYROPERM_TOOLKITS", "").split()

collect_ignore = [
    folder.name for folder in _HERE.iterdir() if folder.is_dir() and folder.name not in _ASKED
]
