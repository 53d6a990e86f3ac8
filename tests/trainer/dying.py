"""How a process dies.

A module of its own, as a new process that is to die imports nothing else for it.
"""

import os
import signal


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
