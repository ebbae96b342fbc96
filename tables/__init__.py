"""The tables: what each compares (a TOML file a table), and how results are rendered as one."""
