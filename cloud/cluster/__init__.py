"""What several cloud nodes share over NATS: connection, layout, buckets (DESIGN section 6)."""
