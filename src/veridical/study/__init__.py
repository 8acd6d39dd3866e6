"""The preference study: its design, its server, and the scale that its votes make."""
