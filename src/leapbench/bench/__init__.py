"""What prediction and observation cost."""
