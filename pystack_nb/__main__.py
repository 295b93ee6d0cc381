"""``python -m pystack_nb`` is ``pystack-nb``."""

import sys

from pystack_nb.cli import main


sys.exit(main())
