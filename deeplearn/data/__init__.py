"""Data: from files and generators to batches on the device."""
