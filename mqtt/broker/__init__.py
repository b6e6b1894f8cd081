"""The asyncio MQTT broker that both the edge and the cloud front use."""
