"""From a configuration to tested weights."""
