"""Data, on the host: load, read, split, normalize, lay out for the device."""
