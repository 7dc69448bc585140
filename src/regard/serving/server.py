"""`regard serve`: load the models, listen, and on SIGTERM answer what was accepted before the process ends."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import uvicorn

from regard.errors import ConfigError, MachineError, escape
from regard.models.build import Model
from regard.serving.app import make_app
from regard.serving.guard import Guard, read_tokens
from regard.serving.metrics import Metrics
from regard.serving.options import ServingOptions
from regard.serving.protocol import Protocol
from regard.serving.served import ServedModel
from regard.serving.service import Service

KEEP_ALIVE = 30  # seconds that an idle connection stays open
# Seconds after which Python lets another thread run. A model needs Python between its operations, each of which would
# wait for Python's 5 ms while the event loop is busy with requests.
SWITCH = 0.0005
SETTLE = 0.2  # seconds in which requests that have reached the machine at SIGTERM are still read


def serve(sources: Mapping[str, str], load: Callable[[str], Model], options: ServingOptions) -> None:
    """Serve models until SIGTERM or Ctrl-C, then answer what was accepted and return.

    Args:
        sources: name by which clients choose a model -> what `load` takes.
        load: returns a model on its device. It is called once the address is known to be free.
        options: of the server.

    Raises:
        ConfigError: wrong options.
        MachineError: the port is in use, or the address is not of this machine.
    """
    options.check()
    tokens = read_tokens(options.token_file)
    listening = listen(options)
    try:
        metrics = Metrics()
        models = [ServedModel(name, load(source).eval(), options, metrics) for name, source in sources.items()]
        for model in models:
            model.warm_up()
        server = make_server(models, options, metrics)
        begin_to_listen(listening, options)
        print(f"serving {', '.join(sources)} at {_address(listening)}", flush=True)
        if not tokens and not _is_local(listening):
            print("warning: anyone who reaches this address can use it: set --token-file FILE", file=sys.stderr)
        _log_to_stderr()
        sys.setswitchinterval(SWITCH)
        asyncio.run(server.serve(sockets=[listening]))
    finally:
        listening.close()


def make_server(models: Sequence[ServedModel], options: ServingOptions, metrics: Metrics) -> Server:
    """Return the server of models; `server.serve(sockets=[listen(options)])` runs it."""
    service = Service(models, options, metrics)
    guard = make_app(service, options, metrics)
    config = uvicorn.Config(  # no address from headers of clients, no log and no header of its own
        guard, http=Protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(options.timeout) + 5,
    )  # fmt: skip
    return Server(config, service, guard)


class Server(uvicorn.Server):
    """uvicorn's server, which ends with 0 after a signal, and reads what has arrived before it closes connections."""

    def __init__(self, config: uvicorn.Config, service: Service, guard: Guard) -> None:
        super().__init__(config)
        self.service = service
        self.guard = guard

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at a second Ctrl-C."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what was accepted, end."""
        for server in self.servers:
            server.close()
        self.service.draining = self.guard.draining = True  # answers now close their connections
        await asyncio.sleep(SETTLE)
        await super().shutdown(sockets)


def listen(options: ServingOptions) -> socket.socket:
    """Return a socket bound to the address; nobody can connect before it listens.

    Raises:
        ConfigError: no such host (C09).
        MachineError: the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name at all, such as `a..b`
        raise ConfigError("no such host", where=_where(options), remedy="use --host 127.0.0.1", code="C09") from error
    family, kind, number, _, address = found[0]
    listening = socket.socket(family, kind, number)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _cannot_listen(error, options) from error
    return listening


def begin_to_listen(listening: socket.socket, options: ServingOptions) -> None:
    """Let clients connect. Several processes may have bound one address; the first that listens has it.

    Raises:
        MachineError: another process listens there.
    """
    try:
        listening.listen()
    except OSError as error:
        raise _cannot_listen(error, options) from error


def _cannot_listen(error: OSError, options: ServingOptions) -> MachineError:
    if error.errno == errno.EADDRNOTAVAIL:
        remedy = "name an address of this machine, such as --host 127.0.0.1, or --host 0.0.0.0 for all"
    elif error.errno == errno.EACCES:
        remedy = "take another one: --port 8000, or 0 for any that is free"
    else:
        remedy = f"take another one: --port {min(options.port + 1, 65535)}, or 0 for any that is free"
    return MachineError(f"cannot listen: {error.strerror}", where=_where(options), remedy=remedy)


def _where(options: ServingOptions) -> str:
    return f"{options.host}:{options.port}"


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_local(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def _log_to_stderr() -> None:
    """Log requests and errors on stderr; a record of whatever content is one line, or lines that begin with a bar."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("regard.serving", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _OneLine(logging.Formatter):
    """Escapes control characters, whoever brought them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and others, such as a traceback, so that they cannot be taken for lines."""
        first, *others = super().format(record).split("\n")
        return "\n".join([escape(first), *(f"  | {escape(line)}" for line in others)])
