"""autocompress: a Pareto front of compressed, deployable checkpoints from one command."""
