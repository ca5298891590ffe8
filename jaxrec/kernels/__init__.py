"""The few operations for which tuned implementations per platform pay, one file each."""
