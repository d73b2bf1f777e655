"""Flax NNX modules of the transformer family and the pure functions derived from them."""
