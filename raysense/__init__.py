"""raysense: the sparsest layer-wise pruning of a text-to-image pipeline that stays inside a quality budget."""

__version__ = "0.2.0"
