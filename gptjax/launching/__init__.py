"""Starts a command on the machines that shall run it; needs Python alone, as where it is typed no JAX may be."""
