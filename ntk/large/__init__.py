"""Kernels larger than memory or one device: tiles, Gram matrices on disk, batches over devices."""
