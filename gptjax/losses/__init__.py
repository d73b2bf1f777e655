"""Losses as arithmetic on arrays: masked reductions, language modelling, ranking of rewards, PPO.

Every loss is a sum over elements divided by a `denominator`. By default that is the weight of the mask of the
arrays at hand; a caller that splits a batch passes the total of the whole batch instead, and then the losses
(and every metric but counts) of the parts add up to exactly the loss of the whole, however it was split.
"""
