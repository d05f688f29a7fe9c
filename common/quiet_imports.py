"""Imported by scripts first, if they are run: Ctrl-C while the rest is imported ends the process, without a traceback.

`errors.one_line` hears Ctrl-C again.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)
