"""What every service stands on: clock, configuration, logs, metrics, start and stop."""
