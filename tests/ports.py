"""Where processes of one test meet."""

import random
import socket


def free_port() -> int:
    """A port nobody listens on, below those that systems hand out by themselves.

    A port of the system's own choice could be handed to another process before the meeting begins.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
