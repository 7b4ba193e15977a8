"""The command line ``agentapi``."""
