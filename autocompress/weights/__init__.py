"""A layer's weight as fewer numbers: two factors in its place, or codes and values it is decoded from."""
