"""What crosses the link: readings, batch codec, uplink and ingest state. Pure."""
