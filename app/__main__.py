"""python -m app INPUT OUTPUT"""

from __future__ import annotations

import signal

from . import quick_imports
from .process import full_disk_in_one_line, leave


def entry() -> None:
    """What `hrnet-ocr-abdomen` and `python -m app` run."""
    try:
        quick_imports.import_nibabel()  # before what imports it as a matter of course
        from .cli import main
    except KeyboardInterrupt:  # which `set_up` has not replaced yet
        raise SystemExit(128 + signal.SIGINT) from None
    try:
        with full_disk_in_one_line():
            main()
    except SystemExit as end:
        leave(end.code)
        raise


if __name__ == "__main__":
    entry()
