"""Base optimizers, and wrappers around any of them: one file and one yaml each."""
