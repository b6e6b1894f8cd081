"""Commands to devices: taken at the cloud, kept, sent to the right gateway, answered for."""
