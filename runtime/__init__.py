"""What every service stands on: clock, configuration, logs, metrics, start and stop."""

import sys

if "rich" not in sys.modules and "structlog" not in sys.modules:
    # structlog loads rich wherever it is installed, for tracebacks that are never printed here:
    # 4 MB that a gateway beside developers' or cloud packages need not carry
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog as structlog

    del sys.modules["rich"]
