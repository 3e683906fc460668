"""The channels that a sidecar acts on: one class and one line in `CHANNELS` each (SCIENCE §6)."""

from sidecar.channels.channel import Arithmetic, Channel
from sidecar.channels.decay import DecayChannel
from sidecar.channels.lr_scale import LrScaleChannel
from sidecar.channels.residual_gain import ResidualGainChannel

CHANNELS: dict[str, type[Channel]] = {
    DecayChannel.name: DecayChannel,
    LrScaleChannel.name: LrScaleChannel,
    ResidualGainChannel.name: ResidualGainChannel,
}

__all__ = ["CHANNELS", "Arithmetic", "Channel", "DecayChannel"]
