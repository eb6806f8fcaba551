"""What users import in their tests: a client in memory, a clock they move, checks for channels and backplanes."""

from wsdeco.testing.backplane_checks import MakeBackplane, check_backplane
from wsdeco.testing.channel_checks import ChannelPeer, MakePair, check_channel
from wsdeco.testing.client import Client, HandshakeRefused
from wsdeco.testing.clock import ManualClock
from wsdeco.testing.handshake import connect
from wsdeco.testing.memory_broker import MemoryBroker

__all__ = [
    "ChannelPeer",
    "Client",
    "HandshakeRefused",
    "MakeBackplane",
    "MakePair",
    "ManualClock",
    "MemoryBroker",
    "check_backplane",
    "check_channel",
    "connect",
]
