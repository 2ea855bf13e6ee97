"""Pages of docs/ whose code must run as it stands, from top to bottom."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def run_script(page, folder):
    """Run a page's Python blocks in one process of their own, in a folder; what they printed."""
    text = (DOCS / page).read_text()
    script = ""
    for block in _BLOCK.finditer(text):
        # Errors show the line of the page.
        script += "\n" * (text.count("\n", 0, block.start(1)) - script.count("\n")) + block[1]
    assert script, f"{page} holds no Python"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{page}\n{done.stdout}\n{done.stderr}"
    return done.stdout
