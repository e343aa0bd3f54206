"""edgekiln: a Keras model, pruned, quantized, compiled to C and proved on the board."""

__version__ = "0.1.0"
