"""How messages travel between the HTTP process and the engine process.

One ZeroMQ ROUTER socket (engine) and one DEALER socket per client, over a Unix socket in a
directory that only this user can enter. Every message is one msgpack frame.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import zmq

from dropless.engine.config import EngineConfig
from dropless.engine.messages import (
    EngineFailed,
    FromEngine,
    RequestRefused,
    ToEngine,
    TokenDelta,
)
from dropless.errors import DroplessError, EngineError, InvalidRequestError

MAX_REQUEST_BYTES = 16 * 2**20  # a million prompt tokens with room to spare
PING_INTERVAL_S = 1.0  # every client pings at least this often, so silence means something
RECONNECT_MS = 10
LINGER_MS = 1000  # how long a closing socket keeps trying to deliver its last messages

CONFIG_FILE = "config.json"
FAILURE_FILE = "failure.json"
SOCKET_FILE = "engine.sock"

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode_to_engine(message: ToEngine) -> bytes:
    """Raises InvalidRequestError if the engine would not accept so large a message."""
    frame = _encoder.encode(message)
    if len(frame) > MAX_REQUEST_BYTES:
        raise InvalidRequestError(
            f"the request is {len(frame)} bytes long inside; the engine takes {MAX_REQUEST_BYTES}",
            code="request_too_large",
        )
    return frame


def encode_from_engine(message: FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(frame: bytes) -> ToEngine:
    """Raises whatever a malformed frame causes: msgspec errors, RecursionError, or the
    InvalidRequestError of a parameter out of range."""
    message: ToEngine = _to_engine.decode(frame)
    return message


def decode_from_engine(frame: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(frame)
    return message


def write_config(directory: Path, config: EngineConfig) -> None:
    content = msgspec.json.encode(config, enc_hook=str)  # the hook is for paths
    (directory / CONFIG_FILE).write_bytes(content)


def read_config(directory: Path) -> EngineConfig:
    content = (directory / CONFIG_FILE).read_bytes()
    return msgspec.json.decode(content, type=EngineConfig, dec_hook=lambda kind, text: kind(text))


def write_failure(directory: Path, error: BaseException) -> None:
    """Leaves the error that ends the engine; one from outside the tree becomes EngineError."""
    if isinstance(error, DroplessError):
        failed = EngineFailed(type(error).__name__, str(error))
    else:
        failed = EngineFailed(EngineError.__name__, f"{type(error).__name__}: {error}")
    (directory / FAILURE_FILE).write_bytes(msgspec.json.encode(failed))


def read_failure(directory: Path) -> EngineFailed | None:
    """What a process that has ended left; None if it had no time to say anything."""
    try:
        return msgspec.json.decode((directory / FAILURE_FILE).read_bytes(), type=EngineFailed)
    except (FileNotFoundError, msgspec.DecodeError):  # absent, or killed while writing
        return None


def endpoint(directory: Path) -> str:
    return f"ipc://{directory / SOCKET_FILE}"


def bind_engine(context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> zmq.Socket[bytes]:
    """The engine's socket. Sending to a client that has gone raises EHOSTUNREACH."""
    socket = context.socket(zmq.ROUTER)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
    socket.set(zmq.SNDHWM, 0)  # a client that stops reading is cut off by time, not by count
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.LINGER, LINGER_MS)
    socket.bind(endpoint(directory))
    return socket


def connect_client(context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> zmq.Socket[bytes]:
    """A client's socket; it may connect before the engine binds."""
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.LINGER, LINGER_MS)
    socket.connect(endpoint(directory))
    return socket


def refusal(request_id: str, error: DroplessError) -> RequestRefused:
    """The message that lets the client raise `error` again."""
    return RequestRefused(
        request_id=request_id,
        kind=type(error).__name__,
        message=str(error),
        param=getattr(error, "param", None),
        code=getattr(error, "code", None),
        retry_after_s=getattr(error, "retry_after_s", None),
    )


def to_error(message: RequestRefused | EngineFailed | TokenDelta) -> DroplessError:
    """The error that the engine had, of the same class where the tree knows it; of a delta, the one
    that ended its request."""
    if isinstance(message, TokenDelta):
        return _error(message.error_kind, message.error or "the engine failed on this request")
    error = _error(message.kind, message.message)
    if isinstance(message, RequestRefused):
        if isinstance(error, InvalidRequestError):
            error.param, error.code = message.param, message.code
        elif hasattr(error, "retry_after_s"):
            error.retry_after_s = message.retry_after_s
    return error


def _error(kind: str, message: str) -> DroplessError:
    return _error_classes(DroplessError).get(kind, EngineError)(message)


def _error_classes(root: type[DroplessError]) -> dict[str, type[DroplessError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _error_classes(child)
    return found
