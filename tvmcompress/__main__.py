"""`python -m tvmcompress`."""

import sys

from tvmcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
