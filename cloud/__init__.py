"""The cloud broker: front, ingest, stream, sinks, alerts, API."""
