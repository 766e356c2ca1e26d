"""What one does with a kernel: training dynamics, posteriors, solves."""
