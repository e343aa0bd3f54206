"""``python -m edgekiln``."""

import sys

from edgekiln.cli import main

if __name__ == "__main__":
    sys.exit(main())
