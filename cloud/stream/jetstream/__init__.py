"""The stream engine on NATS JetStream: docs/adr/0008-jetstream-engine.md."""
