"""What a run needs before it is paid for: memory, operations, traffic and time, without a device."""
