"""`python -m warmroute`: the same as the command `warmroute`."""

import sys

from warmroute.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
