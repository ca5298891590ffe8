"""The few operations where a tuned form pays, one file each."""
