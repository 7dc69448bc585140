"""Options of `regard serve`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Where the server listens, and what it accepts.

    Args:
        host: address to listen at; others than loopback addresses are reached from outside: name a token file too.
        port: port to listen at; 0 takes a free one.
        token_file: file with a token on each line; requests then need the header "Authorization: Bearer TOKEN".
        allow_host: further name that clients may call the server by; localhost and numeric addresses always work.
        batch_size: most images that a model computes at once.
        queue: most images that wait or are computed at once, for each model; above, requests are refused with 503.
        timeout: seconds within which an accepted request is answered.
        max_megabytes: largest body of a request.
        max_megapixels: largest image.
        max_images: most images of a request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    allow_host: tuple[str, ...] = ()
    batch_size: int = 8
    queue: int = 32
    timeout: float = 30.0
    max_megabytes: int = 16
    max_megapixels: int = 50
    max_images: int = 16

    @property
    def max_bytes(self) -> int:
        """Largest body of a request in bytes."""
        return self.max_megabytes * 1024**2

    @property
    def max_pixels(self) -> int:
        """Largest image in pixels."""
        return self.max_megapixels * 10**6

    def check(self) -> None:
        """Check that numbers are in range.

        Raises:
            ConfigError: one is not (C03), or a request could hold more images than the queue (C09).
        """
        least = {"port": 0, "batch_size": 1, "queue": 1, "max_megabytes": 1, "max_megapixels": 1, "max_images": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least {number}", code="C03")
        if self.port > 65535:
            raise ConfigError(f"port={self.port}, expected 0 to 65535", code="C03")
        if not 0 < self.timeout <= 3600:
            raise ConfigError(f"timeout={self.timeout:g}, expected up to 3600 seconds", code="C03")
        if self.queue < self.max_images:
            what = f"queue={self.queue} has no room for a request of max_images={self.max_images}"
            raise ConfigError(what, remedy=f"set --max-images {self.queue}", code="C09")
