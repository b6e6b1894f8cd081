"""Alerts: rules over the stream's readings, on event time; out as MQTT, webhooks and HTTP."""

__all__: list[str] = []
