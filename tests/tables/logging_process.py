"""A process that logs calls as fast as it can, until it is killed, and says which.

`python -m tests.tables.logging_process SPOOL TABLES`: a line `open ID` or `end ID` for each record
that it was told is kept, and first one with its writer's process id.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

from dropless.tables.spool import Spool
from dropless.tables.writer_process import WriterConfig, WriterProcess
from tests.tables.made_up import TABLE, ended, opened


def main(folder: str, tables: str) -> None:
    spool = Spool(Path(folder), max_bytes=1 << 30)
    WriterProcess(WriterConfig(folder, spool.session.name, tables, {}, 0.2, {str(TABLE): None}))
    stream = spool.stream(str(TABLE))
    [writer] = psutil.Process().children()
    os.write(1, b"writer %d\n" % writer.pid)
    for i in range(1 << 30):
        call = f"{spool.session.name}-{i}"
        assert stream.append(opened(call))
        os.write(1, f"open {call}\n".encode())
        if i >= 5:  # five calls are open at any time; some never end
            late = f"{spool.session.name}-{i - 5}"
            if i % 10 and stream.append(ended(late)):
                os.write(1, f"end {late}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
