"""What applies a trained network: exported graphs, sliding windows. Imports neither Lightning nor Hydra."""
