"""Starts a command on the machines that shall run it; needs Python alone, for JAX may be only there."""
