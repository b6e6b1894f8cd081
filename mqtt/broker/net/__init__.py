"""How clients reach the broker: listeners over TCP, TLS, WebSocket, Unix sockets, and their limits.

`config` declares a listener, `listener` opens it; `tls`, `websocket` and `proxy_protocol` are what
may lie between a socket and a connection; `rates` holds a client to a rate.
"""

__all__: list[str] = []
