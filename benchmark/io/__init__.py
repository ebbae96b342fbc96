"""Files: atomic writes, files from elsewhere, TOML, differences of JSON documents."""
