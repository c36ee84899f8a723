"""The configuration of a server: one YAML file, or the options of `dropless serve`."""
