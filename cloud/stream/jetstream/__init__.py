"""The stream engine on NATS JetStream: docs/adr/0006-jetstream-engine.md."""
