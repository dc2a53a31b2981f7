"""Redis Cluster, as a run needs it: the one node that has the run's keys, which share a slot by their hash tag.

Whoever asks another node is answered MOVED, with the address of that one, and goes there.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import MovedError

Address = tuple[str, int]


class Nodes:
    """Which node of a Cluster is asked: one after the other of those in the URL, until one has said which it is."""

    def __init__(self, named: Sequence[Address]) -> None:
        """Args: named: in the URL."""
        self._named = list(named)
        self.address = self._named[0]

    def moved(self, error: MovedError) -> None:
        """Another node has the keys. One that does not know its own address names the port alone."""
        self.address = (error.host or self.address[0], error.port)

    def lost(self) -> None:
        """The node does not answer: the next one knows who has taken its slots over."""
        self._named = [*self._named[1:], self._named[0]]
        self.address = self._named[0]


class NodeConnection(Connection):
    """A connection to the node that is asked when it is opened."""

    def __init__(self, nodes: Nodes, **options: Any) -> None:
        super().__init__(**options)
        self._nodes = nodes

    async def _connect(self) -> None:
        self.host, self.port = self._nodes.address
        await super()._connect()  # type: ignore[no-untyped-call]


class TlsNodeConnection(NodeConnection, SSLConnection):
    """The same, over TLS."""
