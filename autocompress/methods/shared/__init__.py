"""What several methods need: gates on coupled channels, norms of weights, checks of settings."""
