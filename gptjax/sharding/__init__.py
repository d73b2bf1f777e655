"""The mesh of devices and the table that lays parameters and batches out on it."""
