"""What ``agentapi doctor`` looks at."""
