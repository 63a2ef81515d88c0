"""``python -m glocal`` is the ``glocal`` command."""

from glocal.cli import main

main()
