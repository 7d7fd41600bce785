"""Groups of layers that share hidden channels: what produces these, what lies between, and what reads them."""

from dataclasses import dataclass

from compressor.factorization.registry import CHANNELS


@dataclass(frozen=True)
class Reader:
    """A layer that reads hidden channels and mixes them.

    Attributes:
        name: the layer's name in the network.
        norm: name of the batch norm that its outputs go through before anything else; None for none.
        addition: which of the network's additions, counted from 0 in order of use, adds its outputs (after `norm`) to
            something computed before, as at the end of a residual block; None where other things happen to them.
        adds_right: whether they are the addition's second operand.
    """

    name: str
    norm: str | None = None
    addition: int | None = None
    adds_right: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that share hidden channels, which are removed in all of them at once.

    Channels come in units, which are contiguous: one channel, or where a grouped convolution lies between, those of
    one of its groups. A tensor with D channels has D / num_units of them per unit; behind a flatten these include
    positions.

    Attributes:
        name: of the first producer.
        producers: layers whose outputs are the channels; with squeeze-and-excitation its last layer is one.
        between: modules that act unit by unit and have weights: batch norms, PReLU, depthwise and grouped convolutions.
        readers: layers that mix the channels; the last one is the one that is computed last.
        num_units: how many there are.
    """

    name: str
    producers: tuple[str, ...]
    between: tuple[str, ...]
    readers: tuple[Reader, ...]
    num_units: int

    @property
    def method(self) -> str:
        """The method under which plans and reports have it."""
        return CHANNELS

    @property
    def dense_rank(self) -> int:
        """The width by which the group is left as it is: that of all units."""
        return self.num_units

    @property
    def break_even_rank(self) -> int:
        """The largest width at which something is removed."""
        return self.num_units - 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers and of the modules between, in order of use; each once."""
        return tuple(dict.fromkeys([*self.producers, *self.between, *self.reader_names]))

    @property
    def reader_names(self) -> tuple[str, ...]:
        """Names of the readers."""
        return tuple(reader.name for reader in self.readers)
