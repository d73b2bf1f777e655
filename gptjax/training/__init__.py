"""Train state, steps, optimisers, checkpoints and the loop; knows no model and no stage."""
