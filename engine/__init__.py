"""What every stage shares: settings, the loop, checkpoints, the run log, devices."""
