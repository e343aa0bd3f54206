"""Structured channel pruning: whole channels leave the model, which becomes a smaller one.

``trace`` follows the channels through the model's graph, ``groups`` finds those that have to go
together, ``importance`` scores them, ``select`` chooses, and ``surgery`` builds the smaller
Keras model. `prune_channels` and `prune_and_finetune` do all of it.
"""

from edgekiln.quantize.channels.costs import count_flash_bytes, count_layer_macs, count_macs
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.quantize.channels.prune import channel_counts, prune_channels
from edgekiln.quantize.channels.rounds import PruningRound, prune_and_finetune

__all__ = [
    "ChannelPruning",
    "PruningRound",
    "channel_counts",
    "count_flash_bytes",
    "count_layer_macs",
    "count_macs",
    "prune_and_finetune",
    "prune_channels",
]
