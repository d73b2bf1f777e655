"""The stages of the road, each a script that reads top to bottom: data, model, step, loop, report."""
