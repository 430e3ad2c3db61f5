"""The `mos-server` commands: each parses its flags, calls one function, prints one result."""
