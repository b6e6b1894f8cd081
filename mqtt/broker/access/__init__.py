"""Who may do what: rules, passwords, amqtt's plugins, enhanced authentication: one `Access`."""

__all__: list[str] = []
