"""What may vary: one module per method with `suggest(trial, profile) -> Config`."""
