"""The figures: what each shows (a TOML file a figure), how it is planned and how it is drawn."""
