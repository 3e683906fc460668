"""What a sidecar may act on: a channel is one class and one line in `CHANNELS` (SCIENCE §6)."""

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
