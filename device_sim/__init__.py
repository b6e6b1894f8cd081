"""Fleets of simulated devices: load, demonstrations and truth."""
