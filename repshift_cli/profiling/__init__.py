"""Where the time goes: recording, reading and attributing traces."""
