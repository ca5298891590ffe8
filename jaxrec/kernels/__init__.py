"""The few operations for which a tuned form pays, one file each."""
