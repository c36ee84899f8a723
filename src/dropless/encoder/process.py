"""The encoder process: `python -m dropless.encoder.process`, started by `EncoderClient`.

It answers what arrives, a batch at a time, until its parent closes the socket or dies.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
from collections import deque
from multiprocessing.connection import Connection

import msgspec

from dropless.encoder.messages import ToEncoder
from dropless.encoder.models import Models, text_tokens

# Texts are answered together up to so many tokens: more would make the first wait for the last.
BATCH_TOKENS = 512

_decoder = msgspec.msgpack.Decoder(ToEncoder)
_encoder = msgspec.msgpack.Encoder()


def serve(connection: Connection, models: Models) -> None:
    """Answer until the other end is closed."""
    waiting: deque[ToEncoder] = deque()
    while True:
        while not waiting or connection.poll(0):
            try:
                waiting.append(_decoder.decode(connection.recv_bytes()))
            except EOFError:
                return
        batch = [waiting.popleft()]
        room = BATCH_TOKENS - text_tokens(batch[0])
        while waiting and text_tokens(waiting[0]) <= room:
            room -= text_tokens(waiting[0])
            batch.append(waiting.popleft())
        for reply in models.answer(batch):
            connection.send_bytes(_encoder.encode(reply))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s encoder: %(message)s")
    parser = argparse.ArgumentParser(prog="dropless.encoder.process", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="its number, inherited")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    try:
        serve(Connection(arguments.socket), Models(arguments.threads))
    except (ConnectionError, BrokenPipeError):
        logging.getLogger(__name__).warning("the HTTP process is gone")
    os._exit(0)  # nothing is left to save


if __name__ == "__main__":
    main()
