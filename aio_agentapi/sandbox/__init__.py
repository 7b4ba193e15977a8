"""
A stand-in for the service, for people without an account.

It keeps the contract, the limit of calls in flight included, and can be made to
misbehave in every way that is known of the real one. It shares no code with the
client, so that neither can hide the other's mistakes.
"""

from aio_agentapi.sandbox._box import Sandbox, SandboxProcess
from aio_agentapi.sandbox._clock import Clock, ManualClock, SystemClock
from aio_agentapi.sandbox._document import document
from aio_agentapi.sandbox._faults import Fault, Faults
from aio_agentapi.sandbox._records import Account, User
from aio_agentapi.sandbox._service import Gauge
from aio_agentapi.sandbox._switches import Switches
from aio_agentapi.sandbox._thread import SandboxThread

__all__ = [
    "Account",
    "Clock",
    "Fault",
    "Faults",
    "Gauge",
    "ManualClock",
    "Sandbox",
    "SandboxProcess",
    "SandboxThread",
    "Switches",
    "SystemClock",
    "User",
    "document",
]
