"""The gateway: broker near the devices, journal, uplink."""
