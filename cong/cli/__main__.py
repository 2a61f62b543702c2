"""`python -m cong.cli` is `cong`."""

import sys

from cong.cli import main

sys.exit(main())
