"""The command line: one module per command. Only here is anything printed, only here does it exit."""
